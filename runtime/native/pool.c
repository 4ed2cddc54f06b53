/* A thread pool that runs lists of launches: code, kernels, argument tables -> memory written.
 *
 * Every one of `parts` threads walks the whole list with a row of arguments of its own and does its
 * share of each launch (SPMD); the caller is thread 0.  Invariants: all threads take the same way
 * through the list and meet at the same barriers, failed ones too; shares depend on (items, grain,
 * parts) alone; the tables hold on exit what they held on entry; the caller's signals and floating
 * point modes are never changed. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__) && !defined(RG_NO_FUTEX)
#define RG_FUTEX 1
#include <linux/futex.h>
#include <sys/syscall.h>
#else
#define RG_FUTEX 0
#endif

typedef int64_t i64;
typedef uint64_t u64;
typedef uint32_t u32;

typedef i64 (*rg_kernel)(const i64 *a, i64 lo, i64 hi, i64 part);

typedef struct {
    i64 op, x[7];
} rg_code;

/* At turn t of a loop, or in a call that starts at t, an argument is moved by t * stride. */
typedef struct {
    i64 argument, stride;
} rg_mover;

enum {
    RG_LAUNCH, /* kernel, first argument, items, grain, barrier, spread */
    RG_LOOP,   /* count, direction, first mover, movers, index of its END, barrier at each turn */
    RG_END,    /* index of its LOOP */
    RG_TEST,   /* argument that holds the address of a byte, target if that is zero */
    RG_JUMP,   /* target */
    RG_CALL,   /* target, start, first mover, movers */
    RG_RETURN, /* (outside of a call: the end of the list) */
    RG_COPY,   /* arguments of destination, source and number of bytes, barrier */
    RG_CHAIN,  /* blocks, links, barrier; the links are the LAUNCHes behind it, all of them run on
                * one block after the other: block b has the items from b * grain on of each */
    RG_TURNS,  /* count, direction, argument with the address of a number (i64) for each turn, CASEs
                * behind it, index of its END: a loop whose turn t runs the case of number t, the
                * last one where there is none; a barrier follows the last turn */
    RG_CASE    /* target, first mover, movers */
};

enum { RG_SHARED, RG_OWN, RG_FIRST }; /* spread: shares of all, one's own items, thread 0 alone */

enum {
    RG_NO_THREADS = -1, /* what rg_run returns when the system gives no more threads */
    RG_TOO_MANY = -2,   /* ... when there are more parts than the pool has threads */
    RG_LINE = 128,      /* bytes: two lines of cache are fetched together */
    RG_ROUNDS = 10,
    RG_MOST = 1 << RG_ROUNDS, /* threads */
    RG_DEPTH = 64,            /* loops and calls inside of each other */
    RG_STACK = 2 << 20        /* bytes, for a worker */
};
#define RG_TOO_DEEP INT64_MIN /* the fault of a list whose calls and loops nest deeper than RG_DEPTH */

#define RG_ALIGNED _Alignas(RG_LINE)

typedef struct {
    RG_ALIGNED _Atomic u64 word;
} rg_line;

/* A thread's place in the pool.  What different threads write lies on different lines. */
typedef struct {
    rg_line job;               /* number of the newest run it takes part in; the caller writes */
    rg_line done;              /* number of the newest run it has ended; the thread writes */
    i64 index, fault;          /* ... and what failed in it, on the same line as `done` */
    rg_line signal[RG_ROUNDS]; /* twice the number of a barrier, plus 1 if something failed */
    RG_ALIGNED _Atomic u32 parked;
    _Atomic u32 core; /* 1 + the core where the thread is awake; 0: asleep, or not known */
#if !RG_FUTEX
    pthread_mutex_t lock;
    pthread_cond_t wake;
#endif
    struct rg_pool *pool;
    pthread_t thread;
} rg_seat;

typedef struct rg_pool {
    pthread_mutex_t turn; /* held for a run */
    i64 threads, started; /* started: threads there are, the caller counted */
    i64 spin;             /* ns that a waiting thread stays awake */
    u64 run, meeting;     /* numbers of the newest run and barrier */
    _Atomic int closing;
    struct rg_pool *next;
    /* The run at hand. */
    const rg_code *code;
    const rg_kernel *kernels;
    const rg_mover *movers;
    const i64 *origin;
    i64 *work;
    i64 n, nargs, parts;
    u64 modes;
    rg_seat *seats;
} rg_pool;

/* All pools of the process: a forked child has none of their workers. */
static pthread_mutex_t rg_pools_lock = PTHREAD_MUTEX_INITIALIZER;
static rg_pool *rg_pools;
static pthread_once_t rg_forks = PTHREAD_ONCE_INIT;

/* ---- waiting ---- */

static inline void rg_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static i64 rg_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (i64)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int rg_reached(u64 seen, u64 target) { return seen >= target; }

/* Sleeps until `word` has reached the target.  Store of `parked`, then load of the word here; store
 * of the word, then load of `parked` in rg_post: sequentially consistent, one sees the other's. */
static u64 rg_park(rg_seat *self, _Atomic u64 *word, u64 target)
{
    u64 seen;
#if RG_FUTEX
    for (;;) {
        atomic_store(&self->parked, 1);
        seen = atomic_load(word);
        if (rg_reached(seen, target))
            break;
        syscall(SYS_futex, &self->parked, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
    }
    atomic_store(&self->parked, 0);
#else
    pthread_mutex_lock(&self->lock);
    for (;;) {
        atomic_store(&self->parked, 1);
        seen = atomic_load(word);
        if (rg_reached(seen, target))
            break;
        pthread_cond_wait(&self->wake, &self->lock);
    }
    atomic_store(&self->parked, 0);
    pthread_mutex_unlock(&self->lock);
#endif
    return seen;
}

/* Writes a word that `reader` waits for, and wakes it if it sleeps. */
static inline void rg_post(rg_seat *reader, _Atomic u64 *word, u64 value)
{
    atomic_store(word, value);
    if (!atomic_load(&reader->parked))
        return;
#if RG_FUTEX
    if (atomic_exchange(&reader->parked, 0))
        syscall(SYS_futex, &reader->parked, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
#else
    pthread_mutex_lock(&reader->lock);
    pthread_cond_signal(&reader->wake);
    pthread_mutex_unlock(&reader->lock);
#endif
}

/* Tells the others on which core a thread runs. */
static inline u32 rg_here(rg_seat *self)
{
#if defined(__linux__)
    u32 core = (u32)(sched_getcpu() + 1);
    if (atomic_load_explicit(&self->core, memory_order_relaxed) != core)
        atomic_store_explicit(&self->core, core, memory_order_relaxed);
    return core;
#else
    (void)self;
    return 0;
#endif
}

/* Whether another thread of the pool, too, is awake on this core; where that is not known, yes. */
static int rg_crowded(const rg_pool *pool, rg_seat *self)
{
    u32 core = rg_here(self);
    if (!core)
        return 1;
    for (i64 i = 0; i < pool->threads; i++)
        if (pool->seats + i != self &&
            atomic_load_explicit(&pool->seats[i].core, memory_order_relaxed) == core)
            return 1;
    return 0;
}

/* Waits until `word` has reached the target: spins for a while, then sleeps.
 *
 * Who has to write the word may be waiting for this very core: then it is yielded.  Else it is not,
 * as a stranger on the core would run for milliseconds. */
static u64 rg_await(const rg_pool *pool, rg_seat *self, _Atomic u64 *word, u64 target)
{
    u64 seen;
    i64 start = 0;
    for (;;) {
        for (int i = 0; i < 50; i++) {
            seen = atomic_load_explicit(word, memory_order_acquire);
            if (rg_reached(seen, target))
                return seen;
            rg_pause();
        }
        i64 now = rg_now();
        if (!start)
            start = now;
        if (now - start >= pool->spin)
            break;
        if (rg_crowded(pool, self))
            sched_yield();
    }
    atomic_store_explicit(&self->core, 0, memory_order_relaxed);
    seen = rg_park(self, word, target);
    rg_here(self);
    return seen;
}

/* ---- the walk through a list ---- */

typedef struct {
    rg_pool *pool;
    rg_seat *self;
    i64 part, parts;
    u64 meeting;
    i64 index, fault; /* of the first instruction that failed here; -1 as long as none has */
} rg_walker;

/* Meets all other threads; whether one of them failed since the last barrier, the same in all.
 *
 * Dissemination: in round r a thread signals the one 2^r places on (Hensgen, Finkel and Manber,
 * "Two algorithms for barrier synchronization", 1988).  A signal of a later barrier means that its
 * sender has passed this one, which it does only if nobody failed. */
static int rg_meet(rg_walker *w)
{
    u64 bad = w->index >= 0;
    if (w->parts == 1)
        return (int)bad;
    u64 meeting = ++w->meeting;
    rg_seat *seats = w->pool->seats;
    i64 step = 1;
    for (int round = 0; step < w->parts; round++, step *= 2) {
        i64 to = w->part + step;
        rg_seat *reader = &seats[to < w->parts ? to : to - w->parts];
        rg_post(reader, &reader->signal[round].word, 2 * meeting + bad);
        u64 seen = rg_await(w->pool, w->self, &w->self->signal[round].word, 2 * meeting);
        if (seen / 2 == meeting)
            bad |= seen & 1;
    }
    return (int)bad;
}

/* The share [*lo, *hi) of a part: whole blocks of `grain` items, one more for the first parts. */
void rg_share(i64 items, i64 grain, i64 parts, i64 part, i64 *lo, i64 *hi)
{
    if (items < 0)
        items = 0;
    if (grain < 1)
        grain = 1;
    i64 blocks = items / grain + (items % grain != 0);
    i64 each = blocks / parts, more = blocks % parts;
    i64 first = part * each + (part < more ? part : more);
    i64 last = first + each + (part < more);
    *lo = first < blocks ? first * grain : items;
    *hi = last < blocks ? last * grain : items;
}

static inline void rg_move(i64 *args, const rg_mover *mover, i64 count, i64 turns)
{
    for (i64 i = 0; i < count; i++)
        args[mover[i].argument] =
            (i64)((u64)args[mover[i].argument] + (u64)turns * (u64)mover[i].stride);
}

/* The CASE of a turn of the TURNS at index i. */
static inline i64 rg_case(const i64 *turns, i64 i, const i64 *args, i64 turn)
{
    i64 number = ((const volatile i64 *)(uintptr_t)args[turns[2]])[turn];
    return i + 1 + (number < 0 || number >= turns[3] ? turns[3] - 1 : number);
}

/* The list has to be sound (rg_check): nothing is checked here but the depth of calls. */
static void rg_walk(rg_walker *w)
{
    const rg_pool *pool = w->pool;
    const rg_code *code = pool->code;
    const rg_mover *movers = pool->movers;
    const i64 n = pool->n, part = w->part, parts = w->parts;
    i64 *args = pool->work + part * pool->nargs;
    struct {
        i64 index, turn, chosen;
    } stack[RG_DEPTH]; /* the loops and calls we are in; of TURNS, the CASE at work */
    i64 depth = 0;
    for (i64 i = 0; i >= 0 && i < n;) {
        const i64 *x = code[i].x;
        switch (code[i].op) {
        case RG_LAUNCH: {
            i64 lo = 0, hi;
            if (x[5] == RG_SHARED && parts > 1)
                rg_share(x[2], x[3], parts, part, &lo, &hi);
            else if (x[5] == RG_OWN)
                hi = args[x[2]];
            else
                hi = part == 0 ? x[2] : 0;
            /* After a fault a thread walks on to the next barrier, without running anything. */
            if (lo < hi && w->index < 0) {
                i64 fault = pool->kernels[x[0]](args + x[1], lo, hi, part);
                if (fault) {
                    w->index = i;
                    w->fault = fault;
                    if (parts == 1)
                        goto out;
                }
            }
            if ((x[4] || x[5] == RG_FIRST) && rg_meet(w))
                goto out;
            i++;
            break;
        }
        case RG_LOOP:
            if (x[0] <= 0) {
                i = x[4] + 1;
                break;
            }
            if (depth == RG_DEPTH)
                goto deep;
            stack[depth].index = i;
            stack[depth].turn = x[1] < 0 ? x[0] - 1 : 0;
            rg_move(args, movers + x[2], x[3], stack[depth].turn);
            depth++;
            i++;
            break;
        case RG_TURNS: {
            if (x[0] <= 0) {
                i = x[4] + 1;
                break;
            }
            if (depth == RG_DEPTH)
                goto deep;
            i64 turn = x[1] < 0 ? x[0] - 1 : 0, chosen = rg_case(x, i, args, turn);
            stack[depth].turn = turn;
            stack[depth++].chosen = chosen;
            rg_move(args, movers + code[chosen].x[1], code[chosen].x[2], turn);
            i = code[chosen].x[0];
            break;
        }
        case RG_CASE:
            i = x[0];
            break;
        case RG_END: {
            const i64 *loop = code[x[0]].x;
            i64 *turn = &stack[depth - 1].turn;
            if (code[x[0]].op == RG_TURNS) {
                i64 *chosen = &stack[depth - 1].chosen, next = *turn + (loop[1] < 0 ? -1 : 1);
                rg_move(args, movers + code[*chosen].x[1], code[*chosen].x[2], -*turn);
                if (next < 0 || next >= loop[0]) {
                    /* Nobody goes on, to write the numbers anew, before all have read them. */
                    if (rg_meet(w))
                        goto out;
                    depth--;
                    i++;
                    break;
                }
                *turn = next;
                *chosen = rg_case(loop, x[0], args, next);
                rg_move(args, movers + code[*chosen].x[1], code[*chosen].x[2], next);
                i = code[*chosen].x[0];
                break;
            }
            if (loop[5] && rg_meet(w))
                goto out;
            i64 step = loop[1] < 0 ? -1 : 1;
            if (*turn + step >= 0 && *turn + step < loop[0]) {
                rg_move(args, movers + loop[2], loop[3], step);
                *turn += step;
                i = x[0] + 1;
                break;
            }
            rg_move(args, movers + loop[2], loop[3], -*turn);
            depth--;
            i++;
            break;
        }
        case RG_TEST: {
            /* Nobody goes on, to write the byte anew, before all have read it. */
            int zero = *(const volatile unsigned char *)(uintptr_t)args[x[0]] == 0;
            if (rg_meet(w))
                goto out;
            i = zero ? x[1] : i + 1;
            break;
        }
        case RG_JUMP:
            i = x[0];
            break;
        case RG_CALL:
            if (depth == RG_DEPTH)
                goto deep;
            stack[depth++].index = i;
            rg_move(args, movers + x[2], x[3], x[1]);
            i = x[0];
            break;
        case RG_RETURN: {
            if (!depth)
                goto out;
            i = stack[--depth].index;
            const i64 *call = code[i].x;
            rg_move(args, movers + call[2], call[3], (i64)(0 - (u64)call[1]));
            i++;
            break;
        }
        case RG_COPY: {
            i64 lo, hi;
            rg_share(args[x[2]], 64, parts, part, &lo, &hi);
            if (lo < hi && w->index < 0)
                memcpy((char *)(uintptr_t)args[x[0]] + lo,
                       (const char *)(uintptr_t)args[x[1]] + lo, (size_t)(hi - lo));
            if (x[3] && rg_meet(w))
                goto out;
            i++;
            break;
        }
        case RG_CHAIN: {
            i64 block = 0, end = x[0];
            if (parts > 1)
                rg_share(x[0], 1, parts, part, &block, &end);
            for (; block < end && w->index < 0; block++)
                for (i64 link = i + 1; link <= i + x[1] && w->index < 0; link++) {
                    const i64 *y = code[link].x;
                    i64 lo = block * y[3], hi = y[2] - lo < y[3] ? y[2] : lo + y[3];
                    i64 fault = lo < hi ? pool->kernels[y[0]](args + y[1], lo, hi, part) : 0;
                    if (fault) {
                        w->index = link;
                        w->fault = fault;
                    }
                }
            if (parts == 1 && w->index >= 0)
                goto out;
            if (x[2] && rg_meet(w))
                goto out;
            i += 1 + x[1];
            break;
        }
        }
        continue;
    deep:
        /* All threads come here together: none is at a barrier. */
        if (w->index < 0) {
            w->index = i;
            w->fault = RG_TOO_DEEP;
        }
        goto out;
    }
out:
    if (depth) /* Else all that loops and calls moved is back already. */
        memcpy(args, pool->origin + part * pool->nargs, (size_t)pool->nargs * sizeof *args);
}

static int rg_within(i64 first, i64 count, i64 size)
{
    return first >= 0 && count >= 0 && first <= size && count <= size - first;
}

/* 0 if a list is sound, else 1 + the index of an instruction that is not: unknown, out of range, a
 * LOOP or TURNS without its END, a jump into or out of a loop, a call or a return inside of which loops would
 * be left open.  Then no walk reads or writes outside of the list and the tables.  -1: no memory. */
i64 rg_check(const rg_code *code, i64 n, i64 kernels, const rg_mover *movers, i64 moved, i64 nargs)
{
    i64 *inside = malloc((size_t)(n + 1) * sizeof *inside); /* the innermost loop, or -1 */
    if (!inside)
        return -1;
    i64 loop = -1, i;
    for (i = 0; i < n; i++) {
        inside[i] = loop;
        if (code[i].op == RG_LOOP || code[i].op == RG_TURNS)
            loop = i;
        else if (code[i].op == RG_END) {
            if (loop < 0 || code[i].x[0] != loop || code[loop].x[4] != i)
                goto bad;
            loop = inside[loop];
        }
    }
    i = loop;
    if (loop >= 0)
        goto bad;
    inside[n] = -1;
    for (i64 m = 0; m < moved; m++)
        if (!rg_within(movers[m].argument, 1, nargs)) {
            i = n;
            goto bad;
        }
    for (i = 0; i < n; i++) {
        const i64 *x = code[i].x;
        int sound = 0;
        switch (code[i].op) {
        case RG_LAUNCH:
            sound = rg_within(x[0], 1, kernels) && rg_within(x[1], 0, nargs) &&
                    x[5] >= RG_SHARED && x[5] <= RG_FIRST &&
                    (x[5] != RG_OWN || rg_within(x[2], 1, nargs));
            break;
        case RG_LOOP:
            sound = rg_within(x[2], x[3], moved) && (x[1] == 1 || x[1] == -1);
            break;
        case RG_TURNS:
            sound = rg_within(x[2], 1, nargs) && (x[1] == 1 || x[1] == -1) && x[3] > 0 &&
                    rg_within(i + 1, x[3], x[4]);
            for (i64 one = i + 1; sound && one <= i + x[3]; one++)
                sound = code[one].op == RG_CASE;
            break;
        case RG_CASE:
            sound = rg_within(x[0], 1, n) && inside[x[0]] == inside[i] && inside[i] >= 0 &&
                    code[inside[i]].op == RG_TURNS && rg_within(x[1], x[2], moved);
            break;
        case RG_END:
            sound = 1;
            break;
        case RG_TEST:
            sound = rg_within(x[0], 1, nargs) && rg_within(x[1], 0, n) &&
                    inside[x[1]] == inside[i];
            break;
        case RG_JUMP:
            sound = rg_within(x[0], 0, n) && inside[x[0]] == inside[i];
            break;
        case RG_CALL:
            sound = rg_within(x[0], 0, n) && inside[x[0]] == -1 && rg_within(x[2], x[3], moved);
            break;
        case RG_RETURN:
            sound = inside[i] == -1;
            break;
        case RG_COPY:
            sound = rg_within(x[0], 1, nargs) && rg_within(x[1], 1, nargs) &&
                    rg_within(x[2], 1, nargs);
            break;
        case RG_CHAIN:
            sound = rg_within(i + 1, x[1], n) && x[0] >= 0 && x[0] <= INT32_MAX;
            for (i64 link = i + 1; sound && link <= i + x[1]; link++) {
                const i64 *y = code[link].x;
                sound = code[link].op == RG_LAUNCH && y[5] == RG_SHARED && y[3] >= 0 &&
                        y[3] <= INT32_MAX;
            }
            break;
        }
        if (!sound)
            goto bad;
    }
    free(inside);
    return 0;
bad:
    free(inside);
    return 1 + i;
}

/* ---- workers ---- */

/* How to round and whether to flush subnormals: results must not depend on who computes them, so a
 * worker takes the caller's modes over. */
static u64 rg_modes(void)
{
#if defined(__SSE__)
    return __builtin_ia32_stmxcsr() & ~0x3fu; /* without the flags of past exceptions */
#elif defined(__aarch64__)
    u64 modes;
    __asm__ volatile("mrs %0, fpcr" : "=r"(modes));
    return modes;
#else
    return 0;
#endif
}

static void rg_adopt(u64 modes)
{
    if (rg_modes() == modes)
        return;
#if defined(__SSE__)
    __builtin_ia32_ldmxcsr((u32)modes);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(modes));
#else
    (void)modes;
#endif
}

/* Walks the list as thread `part`; the number of the last barrier, the same in all threads. */
static u64 rg_take_part(rg_pool *pool, i64 part)
{
    rg_seat *self = &pool->seats[part];
    rg_walker w = {pool, self, part, pool->parts, pool->meeting, -1, 0};
    rg_here(self);
    rg_walk(&w);
    self->index = w.index;
    self->fault = w.fault;
    return w.meeting;
}

static void *rg_work(void *argument)
{
    rg_seat *self = argument;
    rg_pool *pool = self->pool;
    /* Signals of the process are for the threads of its owner; what a kernel does wrong is not. */
    sigset_t outside;
    sigfillset(&outside);
    const int inside[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++)
        sigdelset(&outside, inside[i]);
    pthread_sigmask(SIG_SETMASK, &outside, NULL);
#if defined(__APPLE__)
    pthread_setname_np("rg-worker");
#elif defined(__linux__)
    pthread_setname_np(pthread_self(), "rg-worker");
#endif
    for (u64 next = 1;;) {
        next = rg_await(pool, self, &self->job.word, next);
        if (atomic_load(&pool->closing))
            return NULL;
        rg_adopt(pool->modes);
        rg_take_part(pool, self - pool->seats);
        rg_post(&pool->seats[0], &self->done.word, next);
        next++;
    }
}

/* Makes a pool that has only its caller.  Nobody else may use it meanwhile. */
static void rg_reset(rg_pool *pool)
{
    pthread_mutex_init(&pool->turn, NULL);
    memset(pool->seats, 0, (size_t)pool->threads * sizeof *pool->seats);
    for (i64 i = 0; i < pool->threads; i++) {
        pool->seats[i].pool = pool;
#if !RG_FUTEX
        pthread_mutex_init(&pool->seats[i].lock, NULL);
        pthread_cond_init(&pool->seats[i].wake, NULL);
#endif
    }
    pool->started = 1;
    pool->run = pool->meeting = 0;
}

static int rg_start(rg_pool *pool, i64 threads)
{
    if (pool->started >= threads)
        return 0;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes))
        return 1;
    pthread_attr_setstacksize(&attributes, RG_STACK);
    int failed = 0;
    while (!failed && pool->started < threads) {
        rg_seat *seat = &pool->seats[pool->started];
        failed = pthread_create(&seat->thread, &attributes, rg_work, seat);
        pool->started += !failed;
    }
    pthread_attr_destroy(&attributes);
    return failed;
}

/* ---- pools ---- */

static void rg_before_fork(void) { pthread_mutex_lock(&rg_pools_lock); }
static void rg_after_fork(void) { pthread_mutex_unlock(&rg_pools_lock); }
static void rg_in_child(void)
{
    pthread_mutex_init(&rg_pools_lock, NULL);
    for (rg_pool *pool = rg_pools; pool; pool = pool->next)
        rg_reset(pool);
}
static void rg_watch_forks(void) { pthread_atfork(rg_before_fork, rg_after_fork, rg_in_child); }

/* A pool of `threads`, its caller among them, that stay awake for `spin` ns after their last work;
 * NULL if that cannot be.  Workers are started by the first run that needs them. */
rg_pool *rg_pool_create(i64 threads, i64 spin)
{
    if (threads < 1 || threads > RG_MOST)
        return NULL;
    rg_pool *pool = calloc(1, sizeof *pool);
    void *seats = NULL;
    if (!pool || posix_memalign(&seats, RG_LINE, (size_t)threads * sizeof *pool->seats)) {
        free(pool);
        return NULL;
    }
    pool->seats = seats;
    pool->threads = threads;
    pool->spin = spin;
    rg_reset(pool);
    pthread_once(&rg_forks, rg_watch_forks);
    pthread_mutex_lock(&rg_pools_lock);
    pool->next = rg_pools;
    rg_pools = pool;
    pthread_mutex_unlock(&rg_pools_lock);
    return pool;
}

/* Ends the workers.  No run may be under way or follow. */
void rg_pool_destroy(rg_pool *pool)
{
    pthread_mutex_lock(&rg_pools_lock);
    rg_pool **at = &rg_pools;
    while (*at != pool)
        at = &(*at)->next;
    *at = pool->next;
    pthread_mutex_unlock(&rg_pools_lock);
    atomic_store(&pool->closing, 1);
    for (i64 i = 1; i < pool->started; i++)
        rg_post(&pool->seats[i], &pool->seats[i].job.word, UINT64_MAX);
    for (i64 i = 1; i < pool->started; i++)
        pthread_join(pool->seats[i].thread, NULL);
    free(pool->seats);
    free(pool);
}

/* Runs the list on `parts` threads: 0, or 1 + the index of the instruction that failed (of those
 * that did, the one of smallest index; of threads that failed there, the first) with what its
 * kernel returned in *fault, or less than 0: see above.  `origin` and `work` are [parts][nargs] and
 * equal; rows of work should not share lines of cache. */
i64 rg_run(rg_pool *pool, const rg_code *code, i64 n, const rg_kernel *kernels,
           const rg_mover *movers, const i64 *origin, i64 *work, i64 nargs, i64 parts, i64 *fault)
{
    *fault = 0;
    if (parts < 1 || parts > pool->threads)
        return RG_TOO_MANY;
    if (parts == 1) { /* No worker, so nobody to wait for. */
        rg_pool own = {.code = code, .kernels = kernels, .movers = movers, .origin = origin,
                       .work = work, .n = n, .nargs = nargs, .parts = 1};
        rg_walker w = {&own, NULL, 0, 1, 0, -1, 0};
        rg_walk(&w);
        *fault = w.fault;
        return 1 + w.index;
    }
    pthread_mutex_lock(&pool->turn);
    if (rg_start(pool, parts)) {
        pthread_mutex_unlock(&pool->turn);
        return RG_NO_THREADS;
    }
    pool->code = code;
    pool->n = n;
    pool->kernels = kernels;
    pool->movers = movers;
    pool->origin = origin;
    pool->work = work;
    pool->nargs = nargs;
    pool->parts = parts;
    pool->modes = rg_modes();
    u64 run = ++pool->run;
    rg_seat *seats = pool->seats;
    for (i64 i = 1; i < parts; i++)
        rg_post(&seats[i], &seats[i].job.word, run);
    u64 meeting = rg_take_part(pool, 0);
    i64 index = seats[0].index;
    *fault = seats[0].fault;
    for (i64 i = 1; i < parts; i++) {
        rg_await(pool, &seats[0], &seats[i].done.word, run);
        if (seats[i].index >= 0 && (index < 0 || seats[i].index < index)) {
            index = seats[i].index;
            *fault = seats[i].fault;
        }
    }
    pool->meeting = meeting; /* not before: a late worker may have been about to read it */
    pthread_mutex_unlock(&pool->turn);
    return 1 + index;
}
