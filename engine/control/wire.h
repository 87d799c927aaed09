/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control messages as they lie on the wire, and their checked decoders.
 *
 * engine/PROTOCOL.md tells what each is for and when it may come.  Everything is
 * little-endian (le.h), packed by construction (bytes only), and sized.  A
 * decoder is given the payload of one message; it believes nothing: counts,
 * strings and ranges are checked before they are used, and a payload that is
 * longer than its content is refused too.
 */
#ifndef LM_WIRE_H
#define LM_WIRE_H

#include "engine/base/le.h"
#include "engine/lock/locks.h"
#include "engine/base/region.h"
#include "engine/transport/transport.h"
#include "engine/vm/vm.h"

#define LM_WIRE_MAGIC 0x43524d4cu /* "LMRC" */
#define LM_WIRE_VERSION 1         /* what this code speaks */
#define LM_WIRE_COMPAT 1          /* oldest version that understands it */
#define LM_WIRE_PAYLOAD_MAX (1u << 20)
#define LM_WIRE_STATE_MAX (256u << 10) /* device state in one message */

enum lm_msg_type {
	LM_MSG_HELLO = 1,
	LM_MSG_OPEN,
	LM_MSG_OPENED,
	LM_MSG_RESIDENT,
	LM_MSG_READY,
	LM_MSG_LANE_DROP,
	LM_MSG_LANE_DROPPED,
	LM_MSG_PREPARE,
	LM_MSG_PREPARED,
	LM_MSG_STATE,
	LM_MSG_SAVED,
	LM_MSG_LOADED,
	LM_MSG_COMMIT,
	LM_MSG_RESUMED,
	LM_MSG_ABORT,
	LM_MSG_PING,
	LM_MSG_PONG,
	LM_MSG_POSTCOPY,
	LM_MSG_POSTCOPY_OPENED,
	LM_MSG_POSTCOPY_KEYS,
	LM_MSG_LEFT,
	LM_MSG_MISSING,
	LM_MSG_RECOVER,
	LM_MSG_WHOLE,
	LM_MSG_LOCK_ANNOUNCE,
	LM_MSG_LOCK_ANSWER,
	LM_MSG_LOCK_OFFER,
	LM_MSG_LANE_OPEN,
	LM_MSG_QUICK,       /* payload as of OPEN */
	LM_MSG_QUICK_READY,
	LM_MSG_QUICK_IMAGE,
	LM_MSG_TYPES
};

struct lm_wire_header {
	struct le32 magic;
	struct le16 type;
	struct le16 reserved; /* 0 */
	struct le32 len;      /* of the payload, bytes */
	struct le32 reserved2; /* 0 */
	struct le64 seq;      /* 0, 1, 2, ... in each direction: a replayed message does not fit */
};
_Static_assert(sizeof(struct lm_wire_header) == 24, "wire header");

struct lm_wire_hello {
	struct le16 version, compat;
	struct le32 features; /* LM_HELLO_*; unknown bits are ignored */
	char software[32];
};
_Static_assert(sizeof(struct lm_wire_hello) == 40, "HELLO");
#define LM_HELLO_LANES 1u /* as the source of a post-copy it understands LANE_OPEN */

struct lm_wire_open {
	char transports[32]; /* names, comma separated, the best first */
	char vmm[16];
	char machine[64];
	char vmm_version[64];
	struct le32 vcpus;
	struct le32 nlanes;
	struct le32 flags; /* LM_OPEN_* */
	struct le32 nregions;
	/* nregions times struct lm_wire_region */
};
_Static_assert(sizeof(struct lm_wire_open) == 192, "OPEN");
#define LM_OPEN_RUNNING 1u /* the guest runs: so shall it at the destination */
#define LM_OPEN_VERIFY  2u
#define LM_OPEN_LOCKS_SHIFT 8 /* one byte of flags: number of storage locks */
#define LM_OPEN_LOCKS (0xffu << LM_OPEN_LOCKS_SHIFT)

struct lm_wire_region {
	char name[LM_REGION_NAME_MAX];
	struct le64 size, page_size;
};
_Static_assert(sizeof(struct lm_wire_region) == 80, "region");

struct lm_wire_opened {
	char transport[LM_TRANSPORT_NAME_MAX]; /* one of those that OPEN named */
	uint8_t token[LM_TOKEN_SIZE]; /* every lane shows it */
	uint8_t endpoint[LM_ENDPOINT_SIZE]; /* opaque to the engine: where the transport listens */
	struct le32 nlanes;           /* granted: at most what OPEN asked for */
	struct le32 flags;            /* LM_OPENED_* */
};
#define LM_OPENED_POSTCOPY 1u /* the destination allows it and can do it */
#define LM_OPENED_REOPEN 2u   /* it understands LANE_OPEN, and its transport can */
_Static_assert(sizeof(struct lm_wire_opened) == 296, "OPENED");

/* Pages of one region that the destination's file holds data for already. */
struct lm_wire_resident {
	struct le32 region;
	struct le32 count;
	/* count times struct lm_wire_extent, ascending, not touching */
};
struct lm_wire_extent {
	struct le64 first, npages;
};
#define LM_WIRE_EXTENTS_MAX 4096

struct lm_wire_saved {
	struct le64 state_bytes;
	struct le64 lane_bytes; /* data bytes written to all lanes and confirmed */
	struct le64 left_pages; /* left behind for post-copy */
	uint8_t ram_hash[16];   /* LM_OPEN_VERIFY: of all RAM, else zero */
};
_Static_assert(sizeof(struct lm_wire_saved) == 40, "SAVED");

struct lm_wire_lane_open {
	struct le32 lane, reserved;   /* 0 */
	uint8_t token[LM_TOKEN_SIZE]; /* what the lane will show, this once */
};
_Static_assert(sizeof(struct lm_wire_lane_open) == 24, "LANE_OPEN");

struct lm_wire_commit {
	struct le32 flags; /* LM_COMMIT_RUN */
};
#define LM_COMMIT_RUN 1u /* the guest ran when it was paused */

struct lm_wire_postcopy {
	struct le64 max_bytes_per_s; /* 0: no limit */
};

struct lm_wire_postcopy_opened {
	char transport[LM_TRANSPORT_NAME_MAX];
	uint8_t token[LM_TOKEN_SIZE];    /* every lane shows it */
	uint8_t secret[LM_TOKEN_SIZE];   /* RECOVER shows it */
	uint8_t endpoint[LM_ENDPOINT_SIZE];
	struct le32 nlanes, reserved;    /* the last lane is the one for faults */
};
_Static_assert(sizeof(struct lm_wire_postcopy_opened) == 312, "POSTCOPY_OPENED");

/* Pages of one region that stay behind; or, with LM_LEFT_END, that all of them were named. */
struct lm_wire_left {
	struct le32 region, kind, count, reserved;
	/* count times struct lm_wire_extent, ascending, not touching */
};
enum lm_left_kind { LM_LEFT_DATA, LM_LEFT_ZERO, LM_LEFT_END };

struct lm_wire_missing { /* the destination's struct lm_postcopy_stats */
	struct le64 left_pages, missing_pages, bytes, faults, p50_ns, p99_ns, max_ns, waited_ns, duration_ns;
};

struct lm_wire_recover {
	uint8_t secret[LM_TOKEN_SIZE];
};

struct lm_wire_times { /* LOADED and RESUMED: durations at the destination */
	struct le64 load_ns; /* RESUMED: of taking the storage locks, which is a part of resume_ns */
	struct le64 resume_ns;
};

/* Quick migration: the guest is in this image. */
struct lm_wire_quick_image {
	uint8_t id[16];
	struct le64 file_size;
};
_Static_assert(sizeof(struct lm_wire_quick_image) == 24, "QUICK_IMAGE");

/* LOCK_ANNOUNCE, LOCK_ANSWER, LOCK_OFFER: one note of LM_LOCK_NOTE_SIZE bytes per lock, in order (lock.h). */

struct lm_wire_abort {
	struct le32 code; /* errno, positive */
	struct le32 len;
	/* len bytes of text */
};

/* What OPEN says, decoded. */
struct lm_open {
	char transports[32];
	struct lm_vm_info info;
	unsigned nlanes;
	bool verify;
	unsigned nlocks;
	unsigned nregions;
	struct lm_open_region {
		char name[LM_REGION_NAME_MAX];
		uint64_t size, page_size;
	} regions[LM_REGIONS_MAX];
};

/* What OPENED says, decoded. */
struct lm_opened {
	char transport[LM_TRANSPORT_NAME_MAX];
	uint8_t token[LM_TOKEN_SIZE];
	uint8_t endpoint[LM_ENDPOINT_SIZE];
	unsigned nlanes;
	bool postcopy, reopen;
};

const char *lm_msg_name(unsigned type);

/* Payloads that are built in one buffer: return the length.  buf holds LM_WIRE_PAYLOAD_MAX. */
size_t lm_wire_put_hello(void *buf);
size_t lm_wire_put_open(void *buf, const struct lm_open *open);
size_t lm_wire_put_opened(void *buf, const struct lm_opened *opened);
size_t lm_wire_put_postcopy_opened(void *buf, const struct lm_opened *opened,
				   const uint8_t secret[static LM_TOKEN_SIZE]);
size_t lm_wire_put_abort(void *buf, int code, const char *text);

/* Decoders: 0, or -EPROTO with what is wrong. */
int lm_wire_get_header(const struct lm_wire_header *h, uint64_t seq, unsigned *ret_type,
		       uint32_t *ret_len, struct lm_error *err);
int lm_wire_get_hello(const void *p, size_t len, char software[static 32], struct lm_error *err);
/* Of a HELLO that was found good: LM_HELLO_*. */
uint32_t lm_wire_hello_features(const void *p);
int lm_wire_get_open(const void *p, size_t len, struct lm_open *ret, struct lm_error *err);
int lm_wire_get_opened(const void *p, size_t len, unsigned nlanes_asked, struct lm_opened *ret,
		       struct lm_error *err);
/* READY: one struct lm_key per region, nothing else. */
int lm_wire_get_ready(const void *p, size_t len, unsigned nregions, struct lm_key *ret_keys,
		      struct lm_error *err);
/* Sets the bits of one RESIDENT message in resident[region]. */
int lm_wire_get_resident(const void *p, size_t len, struct lm_bitmap *resident, unsigned nregions,
			 struct lm_error *err);
int lm_wire_get_postcopy_opened(const void *p, size_t len, unsigned nlanes, struct lm_opened *ret,
				uint8_t ret_secret[static LM_TOKEN_SIZE], struct lm_error *err);
/* One LEFT message; `left` is called for each extent, which lies inside its region. */
typedef void lm_left_fn(void *opaque, unsigned region, uint64_t first, uint64_t n, bool zero);
int lm_wire_get_left(const void *p, size_t len, const struct lm_ram *ram, lm_left_fn *left, void *opaque,
		     bool *ret_end, struct lm_error *err);
int lm_wire_get_missing(const void *p, size_t len, struct lm_postcopy_stats *ret, struct lm_error *err);
/* A payload of one fixed size. */
int lm_wire_get_fixed(const void *p, size_t len, const char *what, void *ret, size_t size, struct lm_error *err);
int lm_wire_get_u32(const void *p, size_t len, const char *what, uint32_t *ret, struct lm_error *err);
/* lane < nlanes */
int lm_wire_get_lane_open(const void *p, size_t len, unsigned nlanes, unsigned *ret_lane,
			  uint8_t ret_token[static LM_TOKEN_SIZE], struct lm_error *err);
int lm_wire_get_saved(const void *p, size_t len, struct lm_wire_saved *ret, struct lm_error *err);
int lm_wire_get_times(const void *p, size_t len, int64_t *ret_load_ns, int64_t *ret_resume_ns,
		      struct lm_error *err);
/* LOCK_*: as many notes as there are locks; what is in them is checked by lm_lock_note_get(). */
int lm_wire_get_locks(const void *p, size_t len, unsigned nlocks, struct lm_lock_notes *ret, struct lm_error *err);
/* Text is cut to size and made printable. */
int lm_wire_get_abort(const void *p, size_t len, int *ret_code, char *text, size_t size,
		      struct lm_error *err);

#endif
