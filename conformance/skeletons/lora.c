/* A LoRA layer as a program. `cc -O2 -o my-lora lora.c` compiles it, `conformance run cmd:./my-lora` checks it, and it passes as
   it stands. Replace the arithmetic with calls of your implementation, and keep the layout: x (n, in), W (out, in), b (out),
   A (in, rank), B (rank, out), rows first, float32. Each line of standard input is a request, and each gets one line as answer.
   conformance/PROTOCOL.md describes them, and says why a search for "key": is enough. What is not offered: "unsupported". */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { int dims, shape[8], size; float *n; } Array;
typedef struct { int in, out, r; double scale; float *W, *b, *A, *B, *dA, *dB; Array x; } Layer;
static Layer *layers[1 << 20]; /* under the numbers that the harness gives them */
static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char *find(const char *line, const char *key) { /* what stands behind "key": */
    char quoted[32];
    const char *at = strstr(line, (snprintf(quoted, sizeof quoted, "\"%s\":", key), quoted));
    return at ? at + strlen(quoted) : "";
}
static double number(const char *line, const char *key) { return strtod(find(line, key), NULL); }
static int is(const char *at, const char *text) { return !strncmp(at, text, strlen(text)); }
static float *zeros(int size) { return calloc(size + 1, sizeof(float)); }
static Array array(const char *p) { /* {"shape":[2,3],"dtype":"float32","data":"the bits in base64"} */
    Array a = {0, {0}, 1, NULL};
    char *at = strchr(p, '[');
    while (*at != ']' && at[1] != ']') a.size *= a.shape[a.dims++] = strtol(at + 1, &at, 10);
    a.n = zeros(a.size);
    unsigned char *to = (unsigned char *)a.n;
    uint32_t bits = 0, held = 0;
    for (const char *c = find(p, "data") + 1; *c != '"' && *c != '='; c++) {
        bits = bits << 6 | (uint32_t)(strchr(DIGITS, *c) - DIGITS);
        if ((held += 6) >= 8) *to++ = bits >> (held -= 8);
    }
    return a;
}
static void put(const char *before, int dims, const int *shape, const float *n) {
    int bytes = sizeof(float);
    printf("%s{\"shape\":[", before);
    for (int i = 0; i < dims; bytes *= shape[i++]) printf("%s%d", i ? "," : "", shape[i]);
    printf("],\"dtype\":\"float32\",\"data\":\"");
    for (int i = 0; i < bytes; i += 3) {
        uint32_t bits = 0;
        for (int k = 0; k < 3; k++) bits = bits << 8 | (i + k < bytes ? ((const unsigned char *)n)[i + k] : 0);
        for (int k = 0; k < 4; k++) putchar(i + k > bytes ? '=' : DIGITS[bits >> (18 - 6 * k) & 63]);
    }
    printf("\"}");
}
static void put_factors(Layer *l, const char *before, const float *A, const float *B) {
    put(before, 2, (int[]){l->in, l->r}, A), put(",\"B\":", 2, (int[]){l->r, l->out}, B), putchar('}');
}
/* out (n, m) += f · l (n, k) r (k, m). l0 and r0 are the strides of the rows, l1 and r1 those of the columns. */
static void add(float *out, double f, const float *l, int l0, int l1, const float *r, int r0, int r1, int n, int k, int m) {
    for (int i = 0; i < n * m; i++) {
        double sum = 0;
        for (int t = 0; t < k; t++) sum += (double)l[i / m * l0 + t * l1] * r[t * r0 + i % m * r1];
        out[i] += f * sum;
    }
}
static const char *build(const char *line, Layer *l) { /* what stands behind "id":N, */
    const char *rank = find(line, "rank"), *dropout = find(line, "dropout");
    if (atoi(rank) < 1 || rank[strspn(rank, "0123456789")] != ',') return "\"error\":\"rank: expected an integer from 1\"";
    if (*find(line, "alpha") == '"') return "\"error\":\"alpha: expected a finite number\"";
    if (!is(find(line, "dtype"), "\"float32") || !is(find(line, "scaling"), "\"standard") || !is(dropout, "0.0,"))
        return "\"unsupported\":\"float32, standard scaling and no dropout are all there is\"";
    l->in = number(line, "in_features"), l->out = number(line, "out_features"), l->r = atoi(rank);
    l->W = array(find(line, "W")).n, l->b = is(find(line, "b"), "null") ? NULL : array(find(line, "b")).n;
    l->A = zeros(l->in * l->r), l->B = zeros(l->r * l->out), l->dA = zeros(l->in * l->r), l->dB = zeros(l->r * l->out);
    l->scale = number(line, "alpha") / l->r;
    srand(1 + (unsigned)number(line, "seed"));
    for (int i = 0; i < l->in * l->r; i++) l->A[i] = (2.0 * rand() / RAND_MAX - 1) / l->in;
    return "\"result\":null";
}
static void answer(const char *line, Layer *l) { /* prints the answer */
    const char *method = find(line, "method") + 1;
    int in = l->in, out = l->out, r = l->r, n = l->x.dims ? l->x.size / in : 0, shape[8];
    memcpy(shape, l->x.shape, sizeof shape);
    if (is(method, "forward\"")) {
        Array x = array(find(line, "x"));
        if (!x.dims || x.shape[x.dims - 1] != in) { printf("\"error\":\"x: its last dimension is not in_features\""); return; }
        l->x = x, n = x.size / in, memcpy(shape, x.shape, sizeof shape), shape[x.dims - 1] = out;
        float *y = zeros(n * out), *h = zeros(n * r);
        add(y, 1, x.n, in, 1, l->W, 1, in, n, in, out), add(h, 1, x.n, in, 1, l->A, r, 1, n, in, r); /* x Wᵀ and h = x A */
        add(y, l->scale, h, r, 1, l->B, out, 1, n, r, out);
        for (int i = 0; l->b && i < n * out; i++) y[i] += l->b[i % out];
        put("\"result\":", x.dims, shape, y);
    } else if (is(method, "backward\"")) {
        Array dy = array(find(line, "dy"));
        shape[l->x.dims - 1] = out;
        if (memcmp(shape, dy.shape, sizeof shape)) { printf("\"error\":\"dy: its shape is not that of y\""); return; }
        float *dx = zeros(n * in), *u = zeros(n * r), *h = zeros(n * r);
        add(u, l->scale, dy.n, out, 1, l->B, 1, out, n, out, r); /* u = scale · dy Bᵀ */
        add(h, l->scale, l->x.n, in, 1, l->A, r, 1, n, in, r);
        add(dx, 1, dy.n, out, 1, l->W, in, 1, n, out, in), add(dx, 1, u, r, 1, l->A, 1, r, n, r, in);
        add(l->dA, 1, l->x.n, 1, in, u, r, 1, in, n, r);         /* xᵀ u */
        add(l->dB, 1, h, 1, r, dy.n, out, 1, r, n, out);
        put("\"result\":{\"x\":", dy.dims, l->x.shape, dx), put_factors(l, ",\"A\":", l->dA, l->dB);
    } else if (is(method, "zero_grad\"")) {
        memset(l->dA, 0, in * r * sizeof(float)), memset(l->dB, 0, r * out * sizeof(float)), printf("\"result\":null");
    } else if (is(method, "step\"")) {
        for (int i = 0; i < in * r; i++) l->A[i] -= number(line, "lr") * l->dA[i];
        for (int i = 0; i < r * out; i++) l->B[i] -= number(line, "lr") * l->dB[i];
        printf("\"result\":null");
    } else if (is(method, "set_adapter\"")) {
        Array A = array(find(line, "A")), B = array(find(line, "B"));
        int fits = A.dims == 2 && B.dims == 2 && A.shape[0] == in && A.shape[1] == r && B.shape[0] == r && B.shape[1] == out;
        printf("%s", fits ? "\"result\":null" : "\"error\":\"A or B: expected (in, rank) and (rank, out)\"");
        if (fits) l->A = A.n, l->B = B.n;
    } else if (is(method, "adapter\"")) put_factors(l, "\"result\":{\"A\":", l->A, l->B);
    else if (is(method, "weight\"")) put("\"result\":", 2, (int[]){out, in}, l->W);
    else if (is(method, "trainable\"")) printf("\"result\":{\"A\":[%d,%d],\"B\":[%d,%d]}", in, r, r, out);
    else printf("\"unsupported\":\"it is not in the skeleton\"");
}
int main(void) {
    char *line = NULL;
    for (size_t room = 0; getline(&line, &room, stdin) > 0; printf("}\n"), fflush(stdout)) {
        Layer **l = &layers[(int)number(line, "layer") % (1 << 20)]; /* a skeleton can afford not to free any memory */
        printf("{\"id\":%.0f,", number(line, "id"));
        if (is(find(line, "method"), "\"hello")) printf("\"result\":{\"protocol\":1,\"name\":\"my-lora\",\"version\":\"0.1\"}");
        else if (is(find(line, "method"), "\"build")) printf("%s", build(line, *l = calloc(1, sizeof(Layer))));
        else answer(line, *l);
    }
}
