// Just enough of the Arduino core to run docs/mbr_ttl/mbr_ttl.ino as a program: the serial port is argv[1], and every
// change of a pin is a line `pin value nanoseconds` on the standard output.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#define LOW 0
#define HIGH 1
#define OUTPUT 1
#define F(text) text

static long long nowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}
static unsigned long millis() { return nowNs() / 1000000; }
static int pins[64];
static void pinMode(int, int) {}
static void digitalWrite(int pin, int value) {
  if (pins[pin] != value) printf("%d %d %lld\n", pin, value, nowNs()), fflush(stdout);
  pins[pin] = value;
}
struct Port {
  int fd = -1;
  void begin(long) {}
  int available() {
    pollfd waiting = {fd, POLLIN, 0};
    return poll(&waiting, 1, 0) > 0 && (waiting.revents & POLLIN);
  }
  char read() {
    char c = 0;
    if (::read(fd, &c, 1) != 1) _exit(0);
    return c;
  }
  void print(const char *text) { (void)!write(fd, text, strlen(text)); }
  void print(unsigned long value) { dprintf(fd, "%lu", value); }
  template <class T> void println(T value) { print(value); print("\r\n"); }
} Serial;
void setup();
void loop();
void endHolds();
void take(char c);
void carryOut();
void say(const char *text);
int main(int, char **arguments) {
  Serial.fd = open(arguments[1], O_RDWR | O_NOCTTY);
  setup();
  for (;;) loop(), usleep(200);
}
