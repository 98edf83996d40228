// TTL box for mbr-live: ten lines that are high for as long as they are told, and never longer.
//
// Arduino Uno, Nano, Mega, Leonardo, Teensy. Line 0 is pin 2, line 1 is pin 3, ... line 9 is pin 11.
// Serial, 115200 baud, ASCII, one command a line, ended by a line feed:
//
//   ?                   ->  mbr-ttl 1 10        who is there: protocol 1, ten lines
//   H SEQ LINE MS       ->  K SEQ               LINE is high for MS milliseconds from now; 0: low at once
//   anything else       ->  E
//
// MS is at most 60000. A new H for the same line replaces the old one. The program that drives it renews what is to
// stay high several times a second, so when the program, the computer or the cable dies, every line falls by itself at
// the end of the last hold (a quarter of a second by default). If this sketch itself hangs, the watchdog timer of the
// chip resets it (AVR boards), and all pins are inputs again: put a 10 kOhm resistor from each used pin to ground.

#if defined(__AVR__)
#include <avr/wdt.h>
#endif

const uint8_t LINES = 10;
const uint8_t FIRST_PIN = 2;
const unsigned long MAX_HOLD_MS = 60000UL;

unsigned long heldSince[LINES];
unsigned long heldFor[LINES];  // 0: low

char command[64];
uint8_t length = 0;
bool tooLong = false;

void setup() {
  for (uint8_t line = 0; line < LINES; line++) {
    digitalWrite(FIRST_PIN + line, LOW);
    pinMode(FIRST_PIN + line, OUTPUT);
    heldFor[line] = 0;
  }
  Serial.begin(115200);
#if defined(__AVR__)
  wdt_enable(WDTO_250MS);
#endif
}

void loop() {
#if defined(__AVR__)
  wdt_reset();
#endif
  endHolds();
  while (Serial.available() > 0) {
    endHolds();
    take(Serial.read());
  }
}

void endHolds() {
  unsigned long now = millis();
  for (uint8_t line = 0; line < LINES; line++) {
    if (heldFor[line] != 0 && now - heldSince[line] >= heldFor[line]) {  // right also when millis() starts anew
      digitalWrite(FIRST_PIN + line, LOW);
      heldFor[line] = 0;
    }
  }
}

void take(char c) {
  if (c == '\r') return;
  if (c != '\n') {
    if (length < sizeof(command) - 1) command[length++] = c;
    else tooLong = true;
    return;
  }
  command[length] = '\0';
  if (tooLong) say("E");
  else carryOut();
  length = 0;
  tooLong = false;
}

void carryOut() {
  if (strcmp(command, "?") == 0) {
    Serial.print(F("mbr-ttl 1 "));
    Serial.println(LINES);
    return;
  }
  unsigned long seq, line, ms;
  char end;
  if (sscanf(command, "H %lu %lu %lu%c", &seq, &line, &ms, &end) != 3 || line >= LINES) {
    say("E");
    return;
  }
  if (ms > MAX_HOLD_MS) ms = MAX_HOLD_MS;
  heldSince[line] = millis();
  heldFor[line] = ms;
  digitalWrite(FIRST_PIN + line, ms > 0 ? HIGH : LOW);
  Serial.print(F("K "));
  Serial.println(seq);
}

void say(const char *text) { Serial.println(text); }
