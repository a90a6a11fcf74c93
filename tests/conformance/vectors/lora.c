/* Answers LoRA vectors: cc -O2 -o lora lora.c -lm && ./lora < vectors.txt > results
 * It computes in double; whoever checks the results rounds them to the vector's format. -DWRONG does not divide by the rank. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { char name[32], text[256]; int size; double *n; } Entry; /* a setting has a text, an array has numbers */
static Entry entries[64], asked[16];
static int count, asks;
static Entry *find(const char *name) { /* NULL if it is not there */
    for (int i = 0; i < count; i++) if (!strcmp(entries[i].name, name)) return &entries[i];
    return NULL;
}
static double number(const char *name) { return find(name) ? strtod(find(name)->text, NULL) : 0; }
static double *zeros(int size) { return calloc(size + 1, sizeof(double)); }
static double *array(const char *name, int size) { return find(name) ? find(name)->n : zeros(size); }
/* out (n, m) += f · l (n, k) r (k, m). l0 and r0 are the strides of the rows, l1 and r1 those of the columns. */
static void add(double *out, double f, const double *l, int l0, int l1, const double *r, int r0, int r1, int n, int k, int m) {
    for (int i = 0; i < n * m; i++) for (int t = 0; t < k; t++) out[i] += f * l[i / m * l0 + t * l1] * r[t * r0 + i % m * r1];
}
static void answer(const char *id, const char *operation) {
    int in = number("in_features"), out = number("out_features"), r = number("rank"), n = find("x") ? find("x")->size / in : 0;
    double scale = number("alpha") / (strcmp(find("scaling")->text, "rslora") ? r : sqrt(r)), lr = number("lr");
#ifdef WRONG
    scale = number("alpha");
#endif
    double *x = array("x", 0), *dy = array("dy", 0), *frozen = array("W", 0), *W = frozen, *b = array("b", out);
    double *A = array("A", in * r), *B = array("B", r * out), *dA = zeros(in * r), *dB = zeros(r * out);
    double *dx = NULL, *y = zeros(n * out);
    char *steps = find("steps") ? find("steps")->text : (char[9]){0};
    if (!find("steps")) strcpy(steps, strcmp(operation, "merge") ? strcmp(operation, "backward") ? "" : "backward" : "merge");
    for (char *step = strtok(steps, ","); step; step = strtok(NULL, ",")) {
        if (!strcmp(step, "backward")) {
            double *u = zeros(n * r), *h = zeros(n * r);
            dx = zeros(n * in), add(u, scale, dy, out, 1, B, 1, out, n, out, r), add(h, scale, x, in, 1, A, r, 1, n, in, r);
            add(dx, 1, dy, out, 1, W, in, 1, n, out, in), add(dx, 1, u, r, 1, A, 1, r, n, r, in);
            add(dA, 1, x, 1, in, u, r, 1, in, n, r), add(dB, 1, h, 1, r, dy, out, 1, r, n, out);
        } else if (!strcmp(step, "step")) {
            for (int i = 0; i < in * r; i++) A[i] -= lr * dA[i];
            for (int i = 0; i < r * out; i++) B[i] -= lr * dB[i];
        } else if (!strcmp(step, "zero_grad")) dA = zeros(in * r), dB = zeros(r * out);
        else if (!strcmp(step, "unmerge")) W = frozen;
        else if (!strcmp(step, "merge"))
            W = memcpy(zeros(out * in), frozen, out * in * sizeof *W), add(W, scale, B, 1, out, A, 1, r, out, r, in);
    }
    double *h = zeros(n * r);
    for (int i = 0; i < n * out; i++) y[i] = b[i % out];
    add(y, 1, x, in, 1, W, 1, in, n, in, out), add(h, scale, x, in, 1, A, r, 1, n, in, r);
    if (W == frozen && strcmp(operation, "fresh")) add(y, 1, h, r, 1, B, out, 1, n, r, out);
    struct { const char *name; double *n; } all[] = {{"y", y}, {"dx", dx}, {"dA", dA}, {"dB", dB}, {"A", A}, {"B", B}, {"W", W}};
    for (int a = 0; a < asks; a++) for (int k = 0; k < 7; k++) if (!strcmp(all[k].name, asked[a].name)) {
        printf("answer %s %s", id, asked[a].name);
        for (int i = 0; i < asked[a].size; i++) printf(" %.17g", all[k].n[i]);
        printf("\n");
    }
}
int main(void) {
    char word[32], id[64], operation[32];
    while (scanf("%31s", word) == 1) {
        Entry e = {.size = 1};
        if (!strcmp(word, "vector")) count = asks = 0, scanf("%63s %31s %*s", id, operation);
        else if (!strcmp(word, "set")) scanf("%31s %255s", e.name, e.text), entries[count++] = e;
        else if (strcmp(word, "end")) { /* give, equal, low, high: a name, the number of dimensions, the shape, the numbers */
            int dims = 0, length = 0;
            for (scanf("%31s %d", e.name, &dims); dims-- && scanf("%d", &length); ) e.size *= length;
            e.n = zeros(e.size);
            for (int i = 0; i < e.size; i++) scanf("%lf", &e.n[i]);
            if (!strcmp(word, "give")) entries[count++] = e; else if (strcmp(word, "high")) asked[asks++] = e;
        } else if (strstr("forward backward merge fresh sequence", operation)) answer(id, operation);
        else printf("unsupported %s it is not in lora.c\n", id);
    }
}
