// A mock of an OpenAI-compatible provider that is cheap enough to measure gateways against.
//
//   upstream [PORT]        loopback only; prints the port it listens on, ends with its parent
//
// The last segment of the request's "model" picks the behaviour:
//   json       a completion of a usual length, at once
//   sse-N-D    a role chunk, N content chunks D microseconds apart (D = 0: the whole stream at once),
//              the finish chunk, usage if include_usage was asked for, [DONE]
// GET /count answers how many POSTs were served; every other GET answers a list of models.
//
// Content chunk i reads "#i@T ", T being CLOCK_MONOTONIC in microseconds when it was written: the load
// generator on the same machine knows from it how long the chunk was under way, and whether one is missing.
// One thread, one epoll, keep-alive, no allocation per request.

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

#define MAX_CONNS 8192
#define MAX_EVENTS 512
#define DATA "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1750000000,\"model\":\"mock\","

struct buffer {
    char *data;
    size_t len, cap;
};

struct conn {
    int fd;
    int slot; // place among the streams that wait for their next chunk, or -1
    struct buffer in, out;
    size_t out_sent;
    int chunks, written, usage; // of the stream in progress
    long long gap, due;
};

static struct conn *waiting[MAX_CONNS];
static int waiting_count;
static long long served;
static int poller;

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void reserve(struct buffer *b, size_t more) {
    if (b->len + more + 1 <= b->cap) return;
    b->cap = (b->len + more + 1) * 2;
    b->data = realloc(b->data, b->cap);
    if (!b->data) abort();
}

static void append(struct buffer *b, const char *data, size_t len) {
    reserve(b, len);
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

static void watch(struct conn *c, unsigned events, int how) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(poller, how, c->fd, &e);
}

static void stop_waiting(struct conn *c) {
    if (c->slot < 0) return;
    waiting[c->slot] = waiting[--waiting_count];
    waiting[c->slot]->slot = c->slot;
    c->slot = -1;
}

static void drop(struct conn *c) {
    stop_waiting(c);
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

// Sends what is queued; 0 when the connection is gone.
static int flush(struct conn *c) {
    while (c->out_sent < c->out.len) {
        ssize_t n = send(c->fd, c->out.data + c->out_sent, c->out.len - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            if (errno != EAGAIN) return 0;
            watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return 1;
        }
        c->out_sent += n;
    }
    c->out.len = c->out_sent = 0;
    return 1;
}

// The head of an answer, with the limits that Groq states in each of its own (they change with every request).
static void answer_head(struct conn *c, const char *type, const char *framing) {
    char head[1024];
    int n = snprintf(head, sizeof head,
        "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nCache-Control: private, max-age=0, no-store\r\n"
        "x-ratelimit-limit-requests: 500000\r\nx-ratelimit-limit-tokens: 300000\r\n"
        "x-ratelimit-remaining-requests: %lld\r\nx-ratelimit-remaining-tokens: %lld\r\n"
        "x-ratelimit-reset-requests: 172.799999ms\r\nx-ratelimit-reset-tokens: %lld.6ms\r\n"
        "x-request-id: req_bench%012lld\r\n%s\r\n\r\n",
        type, 500000 - served % 1000, 300000 - served % 5000, 8 + served % 90, served, framing);
    append(&c->out, head, n);
}

static void answer_json(struct conn *c, const char *body) {
    char framing[64];
    snprintf(framing, sizeof framing, "Content-Length: %zu", strlen(body));
    answer_head(c, "application/json", framing);
    append(&c->out, body, strlen(body));
}

static void event(struct conn *c, const char *text, int len) {
    char size[16];
    append(&c->out, size, sprintf(size, "%x\r\n", len));
    append(&c->out, text, len);
    append(&c->out, "\r\n", 2);
}

static void content_chunk(struct conn *c) {
    char text[512];
    event(c, text, sprintf(text, DATA "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"#%d@%lld \"},\"finish_reason\":null}]}\n\n",
        c->written++, now_us()));
}

static void stream_start(struct conn *c) {
    static const char role[] = DATA "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";
    answer_head(c, "text/event-stream", "Transfer-Encoding: chunked");
    event(c, role, sizeof role - 1);
}

static void stream_end(struct conn *c) {
    static const char finish[] = DATA "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    static const char done[] = "data: [DONE]\n\n";
    event(c, finish, sizeof finish - 1);
    if (c->usage) {
        char text[512];
        event(c, text, sprintf(text, DATA "\"choices\":[],\"usage\":{\"prompt_tokens\":42,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
            c->chunks, c->chunks + 42));
    }
    event(c, done, sizeof done - 1);
    append(&c->out, "0\r\n\r\n", 5);
    stop_waiting(c);
}

static void post(struct conn *c, const char *body) {
    static const char completion[] =
        "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1750000000,\"model\":\"mock\",\"choices\":[{\"index\":0,"
        "\"message\":{\"role\":\"assistant\",\"content\":\"An answer of a usual length, so that neither the body nor its usage is tiny.\"},"
        "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":42,\"completion_tokens\":17,\"total_tokens\":59}}";
    char model[128] = "";
    const char *at = strstr(body, "\"model\"");
    if (at) sscanf(at + 7, " : \"%127[^\"]", model);
    const char *name = strrchr(model, '/');
    name = name ? name + 1 : model;

    served++;
    if (sscanf(name, "sse-%d-%lld", &c->chunks, &c->gap) != 2) {
        answer_json(c, completion);
        return;
    }
    c->written = 0;
    c->usage = strstr(body, "\"include_usage\":true") || strstr(body, "\"include_usage\": true");
    stream_start(c);
    if (c->gap == 0) {
        while (c->written < c->chunks) content_chunk(c);
        stream_end(c);
    } else {
        c->due = now_us() + c->gap;
        c->slot = waiting_count;
        waiting[waiting_count++] = c;
    }
}

static void get(struct conn *c, const char *target) {
    char body[64];
    if (strncmp(target, "/count ", 7)) {
        answer_json(c, "{\"object\":\"list\",\"data\":[{\"id\":\"json\",\"object\":\"model\",\"created\":1750000000,\"owned_by\":\"mock\"}]}");
        return;
    }
    snprintf(body, sizeof body, "{\"served\":%lld}", served);
    answer_json(c, body);
}

// Answers each request that has arrived whole; 0 when the connection is of no more use.
static int serve(struct conn *c) {
    while (c->in.len && c->slot < 0) {
        c->in.data[c->in.len] = 0;
        char *end = strstr(c->in.data, "\r\n\r\n");
        if (!end) return flush(c);
        *end = 0;
        char *length = strcasestr(c->in.data, "\r\ncontent-length:");
        int chunked = strcasestr(c->in.data, "\r\ntransfer-encoding:") != 0;
        *end = '\r';
        if (chunked) return 0; // no gateway needs to: the length of a body it has read is known
        size_t head = end + 4 - c->in.data, body = length ? strtoul(length + 17, 0, 10) : 0;
        if (c->in.len < head + body) return flush(c);
        char after = c->in.data[head + body];
        c->in.data[head + body] = 0;
        if (!strncmp(c->in.data, "GET ", 4)) get(c, c->in.data + 4);
        else post(c, c->in.data + head);
        c->in.data[head + body] = after;
        c->in.len -= head + body;
        memmove(c->in.data, c->in.data + head + body, c->in.len);
    }
    return flush(c);
}

static int readable(struct conn *c) {
    reserve(&c->in, 16384);
    ssize_t n = recv(c->fd, c->in.data + c->in.len, c->in.cap - c->in.len - 1, MSG_DONTWAIT);
    if (n < 0) return errno == EAGAIN;
    if (n == 0) return 0;
    c->in.len += n;
    return serve(c);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
        struct conn *c = fd < MAX_CONNS ? calloc(1, sizeof *c) : 0;
        if (!c) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        c->slot = -1;
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static void write_due_chunks(void) {
    long long now = now_us();
    for (int i = waiting_count - 1; i >= 0; i--) {
        struct conn *c = waiting[i];
        if (c->due > now) continue;
        c->due += c->gap;
        content_chunk(c);
        if (c->written == c->chunks) stream_end(c);
        if (!(c->slot < 0 ? serve(c) : flush(c))) drop(c);
    }
}

static int milliseconds_to_next_chunk(void) {
    if (!waiting_count) return 1000;
    long long first = waiting[0]->due;
    for (int i = 1; i < waiting_count; i++)
        if (waiting[i]->due < first) first = waiting[i]->due;
    long long wait = (first - now_us() + 999) / 1000;
    return wait < 0 ? 0 : wait > 1000 ? 1000 : (int)wait;
}

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, size) || listen(listener, 4096) || getsockname(listener, (void *)&address, &size)) {
        perror("upstream");
        exit(1);
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv) {
    struct epoll_event events[MAX_EVENTS];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int listener = listen_on(argc > 1 ? atoi(argv[1]) : 0);
    poller = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = 0};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(poller, events, MAX_EVENTS, milliseconds_to_next_chunk());
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            int alive = 1;
            if (!c) {
                accept_all(listener);
                continue;
            }
            if (events[i].events & EPOLLOUT) {
                watch(c, EPOLLIN, EPOLL_CTL_MOD);
                alive = flush(c);
            }
            if (alive && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) alive = readable(c);
            if (!alive) drop(c);
        }
        write_due_chunks();
    }
}
