/* The limit of this machine: fork N processes, exchange one message with each, reap them.
 * Prints the microseconds from the first fork to the last answer. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

int main(int argc, char **argv) {
  int count = argc > 1 ? atoi(argv[1]) : 100;
  int poll = epoll_create1(0);
  double began = now_us();
  for (int i = 0; i < count; i++) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair)) return 1;
    pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) {
      char task[64];
      close(pair[0]);
      if (read(pair[1], task, sizeof task) <= 0) _exit(1);
      if (write(pair[1], "acknowledged", 12) != 12) _exit(1);
      _exit(0);
    }
    close(pair[1]);
    if (write(pair[0], "task", 4) != 4) return 1;
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = pair[0]};
    epoll_ctl(poll, EPOLL_CTL_ADD, pair[0], &wanted);
  }
  for (int answered = 0; answered < count;) {
    struct epoll_event events[64];
    int ready = epoll_wait(poll, events, 64, -1);
    for (int i = 0; i < ready; i++) {
      char answer[64];
      if (read(events[i].data.fd, answer, sizeof answer) <= 0) return 1;
      epoll_ctl(poll, EPOLL_CTL_DEL, events[i].data.fd, NULL);
      answered++;
    }
  }
  printf("%.0f\n", now_us() - began);
  while (wait(NULL) > 0) {
  }
  return 0;
}
