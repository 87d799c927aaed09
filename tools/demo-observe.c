// SPDX-License-Identifier: Apache-2.0
/*
 * demo-observe RAM-FILE-A RAM-FILE-B: how long the test guest stood still while
 * it moved from A to B, seen from outside by its heartbeat.  Says "watching",
 * and ends a second after the guest ran on B.
 */
#include <stdio.h>
#include <unistd.h>
#include "observe.h"

#define LOOK_EVERY_US 50000
#define AFTER_US      1000000

int main(int argc, char *argv[])
{
	struct observer *observer = argc == 3 ? observer_start(argv[1], argv[2]) : NULL;
	struct observer_result result;

	if (!observer) {
		fprintf(stderr, "usage: demo-observe RAM-FILE-A RAM-FILE-B\n");
		return 1;
	}
	puts("watching");
	fflush(stdout);
	while (!observer_saw_b(observer))
		usleep(LOOK_EVERY_US);
	usleep(AFTER_US);
	observer_stop(observer, &result);
	if (result.blackout_ns < 0)
		return 1;
	printf("blackout_us %lld\nlongest_blink_us %lld\n", (long long)result.blackout_ns / 1000,
	       (long long)result.max_sample_ns / 1000);
	return 0;
}
