/* SPDX-License-Identifier: Apache-2.0 */
/*
 * COM1 output through a ring: say() never waits; serial_pump() hands over at
 * most one byte, as every access to a port may be an exit from the guest that
 * takes long.  After the port said it is empty its FIFO takes 16 bytes unasked.
 * A whole line is dropped when the ring has no room, and that is said later.
 */
#include <stdarg.h>
#include "cpu.h"
#include "guest.h"

#define COM1		0x3f8
#define FIFO		16u
#define RING		8192u	/* a power of two */
#define LINE		256u

static char ring[RING];
static volatile uint32_t head, tail; /* written up to, sent up to */
static bool busy;		/* a vCPU is writing */
static uint32_t room;		/* bytes the FIFO takes unasked */
static uint64_t dropped;

void serial_init(void)
{
	outb(COM1 + 1, 0);	/* no interrupts */
	outb(COM1 + 3, 0x80);	/* divisor follows */
	outb(COM1 + 0, 1);	/* 115200 */
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 0x03);	/* 8n1 */
	outb(COM1 + 2, 0x07);	/* FIFOs on and empty */
	outb(COM1 + 4, 0x03);
}

void serial_pump(void)
{
	if (head == tail)
		return;
	if (!room) {
		if (inb(COM1 + 5) & 0x20)
			room = FIFO;
		return;
	}
	outb(COM1, (uint8_t)ring[tail++ % RING]);
	room--;
}

/* For the last words only. */
void serial_flush(void)
{
	while (head != tail)
		serial_pump();
}

struct line {
	char text[LINE];
	uint32_t len;
};

static void put(struct line *l, char c)
{
	if (l->len < LINE - 1)
		l->text[l->len++] = c;
}

static void put_text(struct line *l, const char *s)
{
	while (*s)
		put(l, *s++);
}

static void put_number(struct line *l, uint64_t v, uint64_t base)
{
	char digits[24];
	unsigned int n = 0;

	do {
		digits[n++] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	while (n)
		put(l, digits[--n]);
}

static void enqueue(const struct line *l)
{
	uint32_t at = head;

	if (RING - (at - tail) < l->len) {
		dropped++;
		return;
	}
	for (uint32_t i = 0; i < l->len; i++)
		ring[at++ % RING] = l->text[i];
	__atomic_store_n(&head, at, __ATOMIC_RELEASE);
}

static void format_line(struct line *l, const char *f, va_list *args)
{
	for (; *f; f++) {
		if (*f != '%')
			put(l, *f);
		else if (*++f == 's')
			put_text(l, va_arg(*args, const char *));
		else
			put_number(l, va_arg(*args, uint64_t),
				   *f == 'x' ? 16 : 10);
	}
	l->text[l->len++] = '\n';	/* put() leaves room for it */
}

static void lock(void)
{
	while (__atomic_test_and_set(&busy, __ATOMIC_ACQUIRE))
		__builtin_ia32_pause();
}

void say(const char *format, ...)
{
	struct line l = { .len = 0 };
	uint64_t n = 0;
	va_list args;

	va_start(args, format);
	format_line(&l, format, &args);
	va_end(args);
	lock();
	enqueue(&l);
	if (RING - (head - tail) > LINE) {
		n = dropped;
		dropped = 0;
	}
	__atomic_clear(&busy, __ATOMIC_RELEASE);
	if (n)
		say("DROPPED lines=%u", n);
}
