/* The minimum spanning tree of a map, for the CPU: grown from the root by the lowest edge that leads out (Prim's
 * algorithm), then its vertices level by level.
 *
 * A task is an image. Edges have a weight and a number, and no two are equal, so that every algorithm finds this tree.
 */
#include "vector.h"

#define SIDES 4 /* up, right, down, left: clockwise, so that the opposite of a side is two on */

typedef struct {
    int64_t height, width, channels;
    const float *x; /* (batch, height, width, channels) */
    int32_t *table; /* (batch, 4, height * width) */
} map_args;

typedef struct { int64_t key; int32_t vertex, side; } edge; /* leads to a vertex, from one side of it */

typedef struct {
    edge *edges; /* those that lead out of the tree, some of them no longer: a heap, the lowest at 0 */
    int64_t count;
    float *length; /* of the vertices' rows */
    int8_t *from;  /* the side that a vertex's parent lies on, -1 outside the tree */
} growth;

static float product(const float *p, const float *q, int64_t channels) {
    vec sum = {0};
    for (int64_t c = 0; c < channels; c += LANES) {
        const int lanes = lanes_before(c, channels);
        sum += load_lanes(p + c, lanes) * load_lanes(q + c, lanes);
    }
    return sum_lanes(sum);
}

/* The vertex at a side of another, -1 beyond the border. */
static inline int64_t neighbour(const map_args *a, int64_t vertex, int64_t side) {
    const int64_t row = vertex / a->width, column = vertex % a->width;
    if (side == 0) return row > 0 ? vertex - a->width : -1;
    if (side == 1) return column + 1 < a->width ? vertex + 1 : -1;
    if (side == 2) return row + 1 < a->height ? vertex + a->width : -1;
    return column > 0 ? vertex - 1 : -1;
}

static void push(growth *g, edge e) {
    int64_t at = g->count++;
    for (; at > 0 && e.key < g->edges[(at - 1) / 2].key; at = (at - 1) / 2) g->edges[at] = g->edges[(at - 1) / 2];
    g->edges[at] = e;
}

static edge pop(growth *g) {
    const edge lowest = g->edges[0], moved = g->edges[--g->count];
    int64_t at = 0;
    for (int64_t child = 1; child < g->count; at = child, child = 2 * at + 1) {
        if (child + 1 < g->count && g->edges[child + 1].key < g->edges[child].key) child++;
        if (moved.key <= g->edges[child].key) break;
        g->edges[at] = g->edges[child];
    }
    g->edges[at] = moved;
    return lowest;
}

/* Push the edges from a new vertex of the tree to those outside. */
static void reach_out(growth *g, const map_args *a, const float *x, int64_t vertex) {
    const int64_t tokens = a->height * a->width;
    for (int64_t side = 0; side < SIDES; side++) {
        const int64_t other = neighbour(a, vertex, side), low = vertex < other ? vertex : other;
        if (other < 0 || g->from[other] >= 0) continue;
        const float cosine = product(x + vertex * a->channels, x + other * a->channels, a->channels)
                             / (g->length[vertex] * g->length[other]);
        const vec power = exp2_vec(splat(cosine * -1.44269504f));
        int32_t weight; /* positive floats are ordered as their bits are */
        memcpy(&weight, &power, sizeof weight);
        const int64_t number = side % 2 ? tokens + low : low; /* edges downwards first */
        push(g, (edge){((int64_t)weight << 32) + number, (int32_t)other, (int32_t)((side + 2) % SIDES)});
    }
}

static void grow(growth *g, const map_args *a, const float *x) {
    const int64_t tokens = a->height * a->width;
    g->count = 0;
    for (int64_t v = 0; v < tokens; v++) {
        const vec length = splat(product(x + v * a->channels, x + v * a->channels, a->channels));
        g->length[v] = length[0] > 1e-16f ? __builtin_sqrtf(length[0]) : 1e-8f;
        g->from[v] = -1;
    }
    g->from[0] = 3; /* where the root has no neighbour */
    reach_out(g, a, x, 0);
    while (g->count > 0) {
        const edge e = pop(g);
        if (g->from[e.vertex] >= 0) continue;
        g->from[e.vertex] = (int8_t)e.side;
        reach_out(g, a, x, e.vertex);
    }
}

static void write_table(const growth *g, const map_args *a, int32_t *vertex) {
    const int64_t tokens = a->height * a->width;
    int32_t *parent = vertex + tokens, *children_end = parent + tokens, *level = children_end + tokens;
    int64_t end = 1, level_begin = 0, level_end = 1;
    vertex[0] = 0;
    parent[0] = -1;
    for (int64_t step = 0; step < tokens; step++) {
        if (step == level_end) level_begin = step, level_end = end;
        for (int64_t turn = 1; turn < SIDES; turn++) {
            const int64_t side = (g->from[vertex[step]] + turn) % SIDES, child = neighbour(a, vertex[step], side);
            if (child < 0 || g->from[child] != (side + 2) % SIDES || child == 0) continue;
            vertex[end] = (int32_t)child;
            parent[end++] = vertex[step];
        }
        children_end[step] = (int32_t)end;
        level[step] = (int32_t)level_begin;
    }
}

int vssm_grid_tree(const map_args *a, int64_t first, int64_t last) {
    const int64_t tokens = a->height * a->width;
    growth g = {.edges = vectors(2 * tokens * sizeof(edge)), .length = vectors(tokens * sizeof(float)),
                .from = vectors(tokens)};
    const int failed = !g.edges || !g.length || !g.from;
    for (int64_t image = first; image < last && !failed; image++) {
        grow(&g, a, a->x + image * tokens * a->channels);
        write_table(&g, a, a->table + image * 4 * tokens);
    }
    free(g.edges);
    free(g.length);
    free(g.from);
    return failed;
}
