// A closed-loop load generator for chat completions that understands the stamps of the mock upstream.
//
//   load -p PORT -u PATH -m MODEL -k KEY -c CONNECTIONS (-s SECONDS | -n REQUESTS) [-x CHUNKS] [-r RAMP_US]
//
// Connects once, keeps CONNECTIONS requests in flight and prints one JSON object. -x asks for streams and says how
// many content chunks each must bring; -r spreads the first requests evenly over so many microseconds.
//   sent       requests begun            ok         answered 200 and whole
//   non_200    another status            damaged    a stream without [DONE], with an error, or with wrong chunks
//   broken     connections lost          stuck      unanswered 20 s after the last was begun
// Durations are microseconds: latency = to the last byte, ttft = to the first content chunk, transit = from the
// chunk's stamp to its arrival here.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_EVENTS 512
#define GRACE_US 20000000LL

enum framing { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, COMPLETE, BAD };

struct conn {
    int fd, status, is_chunked, chunks, done, damaged;
    enum framing state;
    long long left; // bytes of the body or of the chunk still to come
    long long begun;
    size_t head_len, line_len, mark_len;
    char head[8192], line[4096], mark[64];
};

// A histogram whose buckets are at most 0.4 % wide.
#define STEPS 256
struct histogram {
    long long count, buckets[STEPS * 40];
};

static struct histogram latency, ttft, transit;
static struct {
    long long sent, ok, non_200, damaged, broken, chunks, bytes;
} total;
static struct {
    int port, connections, chunks;
    const char *path, *model, *key;
    double seconds;
    long long requests, ramp;
} want = {.path = "/v1/chat/completions", .model = "json", .key = "none", .connections = 1};
static char request[4096];
static char *digit; // of the model's name, "m1/" to "m8/": each request takes the next
static int request_len, poller;
static long long stop_at;

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void record(struct histogram *h, long long us) {
    if (us < 0) us = 0;
    int shift = us < STEPS ? 0 : 64 - __builtin_clzll(us) - 8;
    long long bucket = shift ? shift * (STEPS / 2) + (us >> shift) : us;
    if (bucket >= STEPS * 40) bucket = STEPS * 40 - 1;
    h->buckets[bucket]++;
    h->count++;
}

static double percentile(const struct histogram *h, double share) {
    long long rank = (long long)(h->count * share), seen = 0;
    for (long long i = 0; i < STEPS * 40; i++) {
        seen += h->buckets[i];
        if (seen <= rank) continue;
        if (i < STEPS) return i;
        int shift = i / (STEPS / 2) - 1;
        return (double)((i - shift * (STEPS / 2)) << shift) + (1LL << shift) / 2.0;
    }
    return -1;
}

static int may_begin(void) {
    return want.requests ? total.sent < want.requests && now_us() < stop_at : now_us() < stop_at;
}

static int connect_to_port(struct conn *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(want.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (void *)&address, sizeof address)) {
        close(c->fd);
        return 0;
    }
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
    return 1;
}

// The request is smaller than any socket buffer, so that one send takes it whole; what else happens shows as broken.
static void begin(struct conn *c) {
    c->state = HEAD;
    c->status = c->is_chunked = c->chunks = c->done = c->damaged = 0;
    c->head_len = c->line_len = c->mark_len = 0;
    c->begun = now_us();
    total.sent++;
    if (digit) *digit = '1' + total.sent % 8;
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != request_len) shutdown(c->fd, SHUT_RDWR);
}

static void event_line(struct conn *c, const char *line, size_t len, long long now) {
    if (len < 6 || memcmp(line, "data: ", 6)) return;
    if (len >= 12 && !memcmp(line + 6, "[DONE]", 6)) {
        c->done = 1;
        return;
    }
    if (len >= 14 && !memcmp(line + 6, "{\"error\"", 8)) c->damaged = 1;
    const char *mark = memchr(line, '#', len), *at = mark ? memchr(mark, '@', line + len - mark) : 0;
    if (!at) return;
    if (atoi(mark + 1) != c->chunks) c->damaged = 1;
    if (c->chunks++ == 0) record(&ttft, now - c->begun);
    record(&transit, now - atoll(at + 1));
}

static void body(struct conn *c, const char *data, size_t len, long long now) {
    if (!want.chunks) return;
    while (len) {
        const char *end = memchr(data, '\n', len);
        size_t part = end ? (size_t)(end - data) : len;
        if (c->line_len + part >= sizeof c->line) {
            c->damaged = 1;
            return;
        }
        if (end && !c->line_len) {
            event_line(c, data, part, now);
        } else {
            memcpy(c->line + c->line_len, data, part);
            c->line_len += part;
            if (end) {
                event_line(c, c->line, c->line_len, now);
                c->line_len = 0;
            }
        }
        if (!end) return;
        data += part + 1;
        len -= part + 1;
    }
}

// Takes bytes up to the end of the head; returns how many.
static size_t feed_head(struct conn *c, const char *data, size_t len) {
    size_t before = c->head_len, room = sizeof c->head - 1 - before, part = len < room ? len : room;
    memcpy(c->head + before, data, part);
    c->head_len += part;
    c->head[c->head_len] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if (part == room) c->state = BAD;
        return part;
    }
    end[2] = 0;
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    c->status = atoi(c->head + 9);
    c->is_chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != 0;
    c->left = length ? atoll(length + 17) : 0;
    c->state = c->is_chunked ? CHUNK_SIZE : !length ? BAD : c->left ? LENGTH : COMPLETE;
    return end + 4 - c->head - before;
}

// Takes the next line of the chunked framing; returns how many bytes.
static size_t feed_mark(struct conn *c, const char *data, size_t len) {
    const char *end = memchr(data, '\n', len);
    size_t part = end ? (size_t)(end - data) + 1 : len;
    if (c->mark_len + part >= sizeof c->mark) {
        c->state = BAD;
        return len;
    }
    memcpy(c->mark + c->mark_len, data, part);
    c->mark_len += part;
    if (!end) return part;
    c->mark[c->mark_len] = 0;
    if (c->state == CHUNK_SIZE) {
        c->left = strtoll(c->mark, 0, 16);
        c->state = c->left ? CHUNK_DATA : TRAILER;
    } else if (c->state == CHUNK_END) {
        c->state = CHUNK_SIZE;
    } else if (c->mark[0] == '\r') {
        c->state = COMPLETE;
    }
    c->mark_len = 0;
    return part;
}

static void feed(struct conn *c, const char *data, size_t len, long long now) {
    while (len && c->state < COMPLETE) {
        size_t used;
        if (c->state == HEAD) {
            used = feed_head(c, data, len);
        } else if (c->state == LENGTH || c->state == CHUNK_DATA) {
            used = (long long)len < c->left ? len : (size_t)c->left;
            body(c, data, used, now);
            c->left -= used;
            if (!c->left) c->state = c->state == LENGTH ? COMPLETE : CHUNK_END;
        } else {
            used = feed_mark(c, data, len);
        }
        data += used;
        len -= used;
    }
    if (len) c->damaged = 1; // bytes after the end of the answer
}

static void complain(const struct conn *c, const char *body, size_t len) {
    static int said;
    if (said++) return;
    fprintf(stderr, "first bad answer: status %d, %d chunks: %.*s\n", c->status, c->chunks, (int)(len > 400 ? 400 : len), body);
}

static void judge(struct conn *c, const char *data, size_t len, long long now) {
    record(&latency, now - c->begun);
    total.chunks += c->chunks;
    if (c->status != 200) total.non_200++;
    else if (c->damaged || (want.chunks && (!c->done || c->chunks != want.chunks))) total.damaged++;
    else {
        total.ok++;
        return;
    }
    complain(c, data, len);
}

// Reads once; 0 when the connection is finished with.
static int readable(struct conn *c) {
    static char data[262144];
    ssize_t n = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
    long long now = now_us();
    if (n < 0 && errno == EAGAIN) return 1;
    if (n > 0) {
        total.bytes += n;
        feed(c, data, n, now);
    }
    if (n <= 0 || c->state == BAD) {
        total.broken++;
        close(c->fd);
        if (!may_begin() || !connect_to_port(c)) return 0;
        begin(c);
        return 1;
    }
    if (c->state != COMPLETE) return 1;
    judge(c, data, n, now);
    if (may_begin()) {
        begin(c);
        return 1;
    }
    close(c->fd);
    return 0;
}

static int run(struct conn *conns, long long start) {
    struct epoll_event events[MAX_EVENTS];
    int begun = 0, live = want.connections;
    while (live) {
        long long now = now_us();
        if (now > stop_at + GRACE_US) break;
        while (begun < want.connections && now >= start + want.ramp * begun / want.connections) {
            if (may_begin()) begin(&conns[begun]);
            else live--;
            begun++;
        }
        int n = epoll_wait(poller, events, MAX_EVENTS, begun < want.connections ? 1 : 1000);
        for (int i = 0; i < n; i++)
            if (!readable(events[i].data.ptr)) live--;
    }
    return live;
}

static void read_arguments(int argc, char **argv) {
    for (int option; (option = getopt(argc, argv, "p:u:m:k:c:s:n:x:r:")) != -1;) switch (option) {
        case 'p': want.port = atoi(optarg); break;
        case 'u': want.path = optarg; break;
        case 'm': want.model = optarg; break;
        case 'k': want.key = optarg; break;
        case 'c': want.connections = atoi(optarg); break;
        case 's': want.seconds = atof(optarg); break;
        case 'n': want.requests = atoll(optarg); break;
        case 'x': want.chunks = atoi(optarg); break;
        case 'r': want.ramp = atoll(optarg); break;
        default: exit(2);
    }
    if (!want.port || want.connections < 1 || (want.seconds <= 0 && want.requests <= 0)) exit(2);
    if (want.seconds <= 0) want.seconds = 600;
}

static void compose_request(void) {
    char prompt[201], text[2048];
    memset(prompt, 'x', 200);
    prompt[200] = 0;
    int len = snprintf(text, sizeof text,
        "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
        "{\"role\":\"user\",\"content\":\"%s\"}],\"temperature\":0.7,\"max_tokens\":256%s}",
        want.model, prompt, want.chunks ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
    request_len = snprintf(request, sizeof request,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: bench\r\nAccept: */*\r\nAuthorization: Bearer %s\r\n"
        "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", want.path, want.port, want.key, len, text);
    if (request_len >= (int)sizeof request) exit(2);
    digit = strstr(request, "m1/");
    if (digit) digit++;
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    read_arguments(argc, argv);
    compose_request();
    poller = epoll_create1(0);
    struct conn *conns = calloc(want.connections, sizeof *conns);
    for (int i = 0; i < want.connections; i++)
        if (!connect_to_port(&conns[i])) {
            perror("load: connect");
            return 1;
        }
    long long start = now_us();
    stop_at = start + (long long)(want.seconds * 1e6);
    int stuck = run(conns, start);
    double seconds = (now_us() - start) / 1e6;
    printf("{\"sent\":%lld,\"ok\":%lld,\"non_200\":%lld,\"damaged\":%lld,\"broken\":%lld,\"stuck\":%d,\"chunks\":%lld,\"bytes\":%lld,\"seconds\":%.3f,"
           "\"latency_p50\":%.1f,\"latency_p99\":%.1f,\"ttft_p50\":%.1f,\"ttft_p99\":%.1f,\"transit_p50\":%.1f,\"transit_p99\":%.1f}\n",
           total.sent, total.ok, total.non_200, total.damaged, total.broken, stuck, total.chunks, total.bytes, seconds,
           percentile(&latency, .5), percentile(&latency, .99), percentile(&ttft, .5), percentile(&ttft, .99),
           percentile(&transit, .5), percentile(&transit, .99));
    return 0;
}
