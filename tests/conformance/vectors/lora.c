/* Answers LoRA vectors: cc -O2 -o lora lora.c -lm && ./lora < vectors.txt > results
 * It computes in double; whoever checks the results rounds them to the format of the vector. -DWRONG forgets to divide by the rank. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { char name[32], text[256]; int size; double *n; } Entry; /* a setting has a text, an array has numbers */
static Entry entries[64], asked[16];
static int count, asks;
static Entry *find(const char *name) {
    for (int i = 0; i < count; i++) if (!strcmp(entries[i].name, name)) return &entries[i];
    return NULL;
}
static double number(const char *name) { return find(name) ? strtod(find(name)->text, NULL) : 0; }
static double *array(const char *name, int size) { /* the one that was given, or zeros */
    return find(name) ? find(name)->n : calloc(size + 1, sizeof(double));
}
/* out (n, m) += f · l (n, k) r (k, m). l0 and r0 are the strides of the rows, l1 and r1 those of the columns. */
static void add(double *out, double f, const double *l, int l0, int l1, const double *r, int r0, int r1, int n, int k, int m) {
    for (int i = 0; i < n * m; i++)
        for (int t = 0; t < k; t++) out[i] += f * l[i / m * l0 + t * l1] * r[t * r0 + i % m * r1];
}
static int offered(const char *operation) { return strcmp(operation, "forward") && strcmp(operation, "backward")
    && strcmp(operation, "merge") && strcmp(operation, "sequence") && strcmp(operation, "fresh") && strcmp(operation, "dropout") ? 0 : 1; }
static void answer(const char *id, const char *operation) {
    int in = number("in_features"), out = number("out_features"), r = number("rank"), fresh = !strcmp(operation, "fresh");
    int n = find("x") ? find("x")->size / in : 0, rs = find("scaling") && !strcmp(find("scaling")->text, "rslora");
    double scale = number("alpha") / (rs ? sqrt(r) : r), lr = number("lr"), zero = 0;
#ifdef WRONG
    scale = number("alpha");
#endif
    double *x = array("x", 0), *dy = array("dy", 0), *frozen = array("W", 0), *W = frozen, *A = array("A", in * r), *B = array("B", r * out);
    double *dA = calloc(in * r, 8), *dB = calloc(r * out, 8), *dx = NULL, *z = calloc(n * in + 1, 8), *y = NULL;
    for (int i = 0; i < n * in; i++) z[i] = find("mask") ? x[i] * find("mask")->n[i] : x[i];
    char steps[256], *step = strcpy(steps, find("steps") ? find("steps")->text : !strcmp(operation, "merge") ? "merge"
                                    : dy ? "backward" : "forward");
    for (step = strtok(steps, ","); step; step = strtok(NULL, ",")) {
        if (!strcmp(step, "backward")) {
            double *u = calloc(n * r + 1, 8), *h = calloc(n * r + 1, 8), *dz = calloc(n * in + 1, 8);
            dx = calloc(n * in + 1, 8);
            add(u, scale, dy, out, 1, B, 1, out, n, out, r), add(h, scale, z, in, 1, A, r, 1, n, in, r);
            add(dx, 1, dy, out, 1, W, in, 1, n, out, in), add(dz, 1, u, r, 1, A, 1, r, n, r, in);
            for (int i = 0; i < n * in; i++) dx[i] += find("mask") ? dz[i] * find("mask")->n[i] : dz[i];
            add(dA, 1, z, 1, in, u, r, 1, in, n, r), add(dB, 1, h, 1, r, dy, out, 1, r, n, out);
        } else if (!strcmp(step, "step")) {
            for (int i = 0; i < in * r; i++) A[i] -= lr * dA[i];
            for (int i = 0; i < r * out; i++) B[i] -= lr * dB[i];
        } else if (!strcmp(step, "zero_grad")) memset(dA, 0, in * r * 8), memset(dB, 0, r * out * 8);
        else if (!strcmp(step, "unmerge")) W = frozen;
        else if (!strcmp(step, "merge")) {
            W = memcpy(calloc(out * in, 8), frozen, out * in * 8);
            add(W, scale, B, 1, out, A, 1, r, out, r, in);
        }
    }
    y = calloc(n * out + 1, 8);
    for (int i = 0; i < n * out; i++) y[i] = find("b") ? find("b")->n[i % out] : zero;
    double *h = calloc(n * r + 1, 8);
    add(y, 1, x, in, 1, W, 1, in, n, in, out), add(h, scale, z, in, 1, A, r, 1, n, in, r);
    if (W == frozen && !fresh) add(y, 1, h, r, 1, B, out, 1, n, r, out);
    struct { const char *name; double *n; } all[] = {{"y", y}, {"dx", dx}, {"dA", dA}, {"dB", dB}, {"A", A}, {"B", B}, {"W", W}};
    for (int a = 0; a < asks; a++) for (int k = 0; k < 7; k++) if (!strcmp(all[k].name, asked[a].name)) {
        printf("answer %s %s", id, asked[a].name);
        for (int i = 0; i < asked[a].size; i++) printf(" %.17g", all[k].n[i]);
        printf("\n");
    }
}
int main(void) {
    char word[32], id[64], operation[32], dtype[32];
    printf("program lora.c\n");
    while (scanf("%31s", word) == 1) {
        Entry e = {.size = 1};
        if (!strcmp(word, "vector")) { if (scanf("%63s %31s %31s", id, operation, dtype) == 3) count = asks = 0; }
        else if (!strcmp(word, "set")) { if (scanf("%31s %255s", e.name, e.text) == 2) entries[count++] = e; }
        else if (!strcmp(word, "end")) {
            if (offered(operation)) answer(id, operation); else printf("unsupported %s it is not in lora.c\n", id);
        } else { /* give, equal, low, high: a name, the number of dimensions, the shape, the numbers */
            int dims = 0, length = 0;
            for (scanf("%31s %d", e.name, &dims); dims-- && scanf("%d", &length); ) e.size *= length;
            e.n = calloc(e.size + 1, sizeof(double));
            for (int i = 0; i < e.size; i++) if (scanf("%lf", &e.n[i]) != 1) return 1;
            if (!strcmp(word, "give")) entries[count++] = e;
            else if (strcmp(word, "high")) asked[asks++] = e;
        }
    }
}
