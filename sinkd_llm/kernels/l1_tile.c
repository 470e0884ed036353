/* The L1 tile on a CPU: every difference is made in a register and never written.
 *
 * x [B, N, w] and y [B, M, w] have columns of stride 1; all other strides are given, in elements. Sums run over lanes
 * first and over blocks of columns then, in an order that depends on the sizes alone.
 */
#include <math.h>
#include <stdint.h>

enum { COLUMNS = 512, ROWS = 128, LANES = 64 };  /* a block of y: 256 KiB, half of a usual second-level cache */

static float distance(const float *x, const float *y, int64_t w) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t v = 0; v < w; v++) sum += fabsf(x[v] - y[v]);
    return sum;
}

/* cost[b, i, j] += sum_v |x[b, i, v] - y[b, j, v]| */
void l1_cost(float *cost, int64_t cost_b, int64_t cost_i, int64_t cost_j,
             const float *x, int64_t x_b, int64_t x_i, const float *y, int64_t y_b, int64_t y_j,
             int64_t B, int64_t N, int64_t M, int64_t w) {
    for (int64_t b = 0; b < B; b++)
    for (int64_t v = 0; v < w; v += COLUMNS)
    for (int64_t first = 0; first < M; first += ROWS) {
        const int64_t width = w - v < COLUMNS ? w - v : COLUMNS, last = M - first < ROWS ? M : first + ROWS;
        for (int64_t i = 0; i < N; i++) {
            const float *s = x + b * x_b + i * x_i + v;
            float *out = cost + b * cost_b + i * cost_i;
            int64_t j = first;
            for (; j + 4 <= last; j += 4) {  /* four rows of y share each entry of x */
                const float *t0 = y + b * y_b + j * y_j + v, *t1 = t0 + y_j, *t2 = t1 + y_j, *t3 = t2 + y_j;
                float c0 = 0, c1 = 0, c2 = 0, c3 = 0;
                #pragma omp simd reduction(+ : c0, c1, c2, c3)
                for (int64_t k = 0; k < width; k++) {
                    c0 += fabsf(s[k] - t0[k]);
                    c1 += fabsf(s[k] - t1[k]);
                    c2 += fabsf(s[k] - t2[k]);
                    c3 += fabsf(s[k] - t3[k]);
                }
                out[j * cost_j] += c0;
                out[(j + 1) * cost_j] += c1;
                out[(j + 2) * cost_j] += c2;
                out[(j + 3) * cost_j] += c3;
            }
            for (; j < last; j++) out[j * cost_j] += distance(s, y + b * y_b + j * y_j + v, width);
        }
    }
}

/* The sum over j of g_j sign(s - t_j), for `width` columns. Inlined with a constant, it stays in registers. */
static inline void signs(float *out, const float *s, const float *t, int64_t t_j,
                         const float *g, int64_t g_j, int64_t M, int64_t width) {
    float sum[LANES] = {0};
    for (int64_t j = 0; j < M; j++, t += t_j, g += g_j) {
        const float weight = *g;
        #pragma omp simd
        for (int64_t k = 0; k < width; k++)
            sum[k] += (s[k] > t[k] ? weight : 0.0f) - (s[k] < t[k] ? weight : 0.0f);
    }
    for (int64_t k = 0; k < width; k++) out[k] = sum[k];
}

/* out[b, i, v] = sum_j g[b, i, j] sign(x[b, i, v] - y[b, j, v]) */
void l1_gradient(float *out, int64_t out_b, int64_t out_i,
                 const float *x, int64_t x_b, int64_t x_i, const float *y, int64_t y_b, int64_t y_j,
                 const float *g, int64_t g_b, int64_t g_i, int64_t g_j,
                 int64_t B, int64_t N, int64_t M, int64_t w) {
    for (int64_t b = 0; b < B; b++)
    for (int64_t v = 0; v < w; v += LANES)
    for (int64_t i = 0; i < N; i++) {
        float *r = out + b * out_b + i * out_i + v;
        const float *s = x + b * x_b + i * x_i + v, *t = y + b * y_b + v, *weights = g + b * g_b + i * g_i;
        if (w - v >= LANES) signs(r, s, t, y_j, weights, g_j, M, LANES);
        else signs(r, s, t, y_j, weights, g_j, M, w - v);
    }
}
