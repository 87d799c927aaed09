/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The switchover: two engines, their guardians, two QEMUs, the storage locks between
 * them, and a person with `migrate-rdma resolve`.  README.md says what is left out.
 *
 * Every step that is not inside one atomic { } is a point where its process can be
 * killed, and where everybody else can come in between.  Names in comments are those
 * of the functions of ../../engine and ../../kvm-glue that do the step.
 *
 * Given by `run`: LOCKS (0, 1, 2), FAULTS (how many), KINDS (which; see may()), and
 * BREAK_NAME for a rule that is broken, REACH for a state that must be reachable.
 */
#ifndef LOCKS
#define LOCKS 0
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef KINDS
#define KINDS 1023
#endif

/* Kinds of faults; each happens once per unit of FAULTS. */
#define K_ENGINES   1    /* an engine is killed */
#define K_GUARDIANS 2    /* a guardian is killed */
#define K_QEMUS     4    /* a QEMU dies */
#define K_HOSTS     8    /* all three of a host at once */
#define K_NET       16   /* the connection breaks */
#define K_HANG      32   /* the source engine is held up until its guardian loses patience, and goes on later */
#define K_STORAGE   64   /* a host does not reach the storage for a while */
#define K_CONT      128  /* the destination's QEMU refuses `cont`, or does not answer it */
#define K_THIRD     256  /* a guest that was brought back is moved on at once, to a third host */
#define K_END       512  /* the guest ends at the destination, and its locks are released there */
#define may(kind)   (faults > 0 && (KINDS & (kind)))

mtype:vm = { waits, loading, loaded, runs, paused, saved, gone };
mtype:phase = { IDLE, PAUSED, REVOKED, COMMITTED };
mtype:proc = { alive, ended, killed };
mtype:lock = { at_source, offered, at_dest, at_third, free };
mtype:got = { owned, taken, unreachable };
mtype:msg = { PREPARE, PREPARED, SAVED, LOADED, OFFER, COMMIT, RESUMED, ABORT };

mtype:vm qs = runs, qd = waits;             /* the two QEMUs */
mtype:phase ph_s = IDLE, ph_d = IDLE;       /* the word that engine and guardian share */
mtype:proc es = alive, ed = alive, gs = alive, gd = alive;
chan to_d = [4] of { mtype:msg };
chan to_s = [4] of { mtype:msg };
bool up = true;                             /* the connection; what is under way when it breaks may arrive or not */
bool lanes = true;                          /* bytes of the source can reach the destination's memory */
byte faults = FAULTS;
bool g_offered;                             /* shared with the source's guardian: locks may be offered */
bool g_offering;                            /* the same: the engine is at the storage with its offer */
bool down_s, down_d;                        /* hosts that do not reach the storage */
#if LOCKS
mtype:lock lk[LOCKS] = at_source;
bool again[LOCKS];                          /* its epoch is past that of the first offer */
#endif

/* Nobody in the model looks at these: what has been, for the rules. */
bool d_ran, s_back, third_asks, third_runs, loaded_once, commit_sent, s_doubt, s_done, ended_well;
bool hard;                                  /* a fault after which a person may have to be asked */
bool asked;                                 /* one was */
bool s_died, d_died;                        /* a QEMU, by itself */

#if LOCKS == 0
#define all_are(x)  true
#elif LOCKS == 1
#define all_are(x)  (lk[0] == x)
#else
#define all_are(x)  (lk[0] == x && lk[1] == x)
#endif
#define here_s      (es == alive || gs == alive)  /* QEMU's QMP socket serves one client: resolve has to wait */
#define here_d      (ed == alive || gd == alive)
#define stopped_s   (qs == paused || qs == saved)

/* ---- steps that several take ---- */

/* A stage can fail for reasons of its own (lm_session_stage, a deadline, cancel). */
#define MAY_FAIL(label)   if :: skip :: goto label fi

/* lm_control_send: into the kernel's buffer, from where it is lost when the connection is broken already. */
#define SEND(to, m, label) \
	if :: atomic { up -> assert(nfull(to)); to!m } :: !up -> goto label :: !up -> skip fi

/* lm_control_expect: another message, the end of the connection, or silence */
#define EXPECT(from, m, label) \
	if :: from?m :: from?[ABORT] -> from?ABORT; goto label :: !up -> goto label :: goto label fi

/* The guest runs (on): qemu_cont.  Who has run and where is what the rules are about. */
inline run_source()
{
	if
	:: qs == gone || qs == runs -> skip
	:: else -> qs = runs; s_back = true; printf("the guest runs at the source again\n")
	fi
}

inline run_dest()
{
	if
	:: qd == loaded -> qd = runs; d_ran = true; printf("the guest runs at the destination\n")
	:: else -> skip
	fi
}

inline kill_source_engine() { if :: es == alive -> es = killed; up = false; printf("the source's engine dies\n") :: else fi }
inline kill_dest_engine() { if :: ed == alive -> ed = killed; up = false; printf("the destination's engine dies\n") :: else fi }

#include "commit_locks.pml"

/* ---- the source's engine: session/source.c, session/switchover.c, switchover/commit.c ---- */

active proctype source_engine()
{
	mtype:got r = owned;
	short i;
	bool paused_it, out, never_ran;

	{
		/* prepare */
		SEND(to_d, PREPARE, undo);
		EXPECT(to_s, PREPARED, undo);
		/* pause_start: lm_guardian_pause, lm_vm_pause_start */
		atomic { ph_s = PAUSED; paused_it = true };
		MAY_FAIL(undo);
#if defined(BREAK_LOCK_EARLY)
		OFFER_ALL;
#endif
		/* pause_wait: stopped, disks drained and flushed */
		atomic {
			if
			:: qs == runs -> qs = paused; printf("the guest is stopped\n")
			:: else -> goto undo
			fi
		};
		MAY_FAIL(undo);
		/* last_copy, save_state: migrate-continue, the state is out; not if the guardian has undone it all */
		atomic {
			if
			:: qs == paused -> qs = saved
			:: else -> goto undo
			fi
		};
		SEND(to_d, SAVED, undo);
#if LOCKS && !defined(BREAK_LOCK_EARLY)
		OFFER_ALL;
#endif
#ifndef BREAK_EARLY_COMMIT
		/* device_state */
		EXPECT(to_s, LOADED, undo);
#endif
		MAY_FAIL(undo);
		/* commit: lm_guardian_commit */
#ifdef BREAK_CAS
		ph_s = COMMITTED; commit_sent = true;
#else
		atomic {
			if
			:: ph_s == PAUSED -> ph_s = COMMITTED; commit_sent = true
			:: else -> goto undo
			fi
		};
#endif
		if
		:: atomic { up -> to_d!COMMIT; assert(loaded_once); printf("COMMIT is sent\n") }
		:: atomic { !up -> ph_s = PAUSED; commit_sent = false }; goto undo /* lm_guardian_uncommit: not in full, so not at all */
		:: !up /* into a connection that was broken: nobody will get it */
		fi;
		/* await_resumed */
		if
		:: to_s?RESUMED -> goto done
		:: to_s?ABORT -> goto uncommitted
		:: to_s?[LOADED] -> goto doubt               /* a protocol error */
		:: !up -> goto doubt
		:: goto doubt                                /* silence */
		fi;
doubt:
#if LOCKS
		/* ask_locks */
		RECLAIM_ALL(r);
		if
		:: r == owned -> g_offered = false; out = false; goto back
		:: r == taken && up ->
			if
			:: to_s?RESUMED -> goto done
			:: to_s?ABORT -> goto uncommitted
			:: !up
			:: skip
			fi
		:: r == unreachable
		:: r == taken
		fi;
#ifdef BREAK_TAKEN_IS_DONE
		s_done = (r == taken);
#endif
		s_doubt = true;
		goto over;
#elif defined(BREAK_DOUBT)
		goto undo;
#else
		s_doubt = true;
		goto over;
#endif
uncommitted:
		/* The destination has ended its QEMU and given back what it had. */
		never_ran = true;
back:
		ph_s = PAUSED;
undo:		/* lm_switchover_undo, tell_peer */
		if
		:: !paused_it -> goto tell
		:: else
		fi;
#if LOCKS && !defined(BREAK_LOCK_RECLAIM)
		/* may_run_again, lm_handover_reclaim */
		if
		:: out ->
			RECLAIM_ALL(r);
			if
			:: r == owned -> g_offered = false
			:: else -> ph_s = IDLE; s_doubt = true; goto over
			fi
		:: else
		fi;
#endif
		atomic { run_source() };
		ph_s = IDLE;
tell:
		if :: atomic { up -> to_d!ABORT } :: !up fi;
		goto over;
done:
		s_done = true;
		ph_s = IDLE;
over:
		/* lm_guardian_stop, lm_session_free */
		atomic { es = ended; up = false; r = owned; i = 0; paused_it = false; out = false; never_ran = false }
	} unless {
		atomic { es == killed -> r = owned; i = 0; paused_it = false; out = false; never_ran = false }
	}
}

/* ---- the source's guardian: switchover/guardian.c ---- */

active proctype source_guardian()
{
	mtype:got r = owned;
	short i;
	bool hung, never_ran;

	{
#ifdef BREAK_GUARDIAN
		goto over;
#else
		skip;
#endif
watch:
		if
		:: es == ended -> goto over
		/* check_pause: the engine may yet go on */
		:: atomic { may(K_HANG) && es == alive && ph_s == PAUSED ->
			faults--; hung = true; ph_s = REVOKED; printf("the source's guardian undoes the pause\n") };
#if LOCKS && !defined(BREAK_LOCK_HANG)
			/* wait_for_offer: one that is at an offer right now may yet have it done */
			if
			:: !g_offering
			:: es != alive -> hung = false; goto watch
			fi;
#endif
			goto bring_back
		/* engine_died */
#ifdef BREAK_REVOKED
		:: es == killed && ph_s == REVOKED -> goto over
#else
		/* It may have paused the guest after that. */
		:: es == killed && ph_s == REVOKED -> goto bring_back
#endif
		:: atomic { es == killed && ph_s == PAUSED -> ph_s = REVOKED }; goto bring_back
#if LOCKS || defined(BREAK_GUARDIAN_COMMIT)
		:: es == killed && ph_s == COMMITTED -> goto bring_back
#else
		:: es == killed && ph_s == COMMITTED -> s_doubt = true; goto over
#endif
		:: es == killed && ph_s == IDLE -> goto over
		fi;
bring_back:	/* undo_pause: LM_RESCUE_UNDO_RUN */
#if LOCKS && !defined(BREAK_GUARDIAN_RECLAIM)
		if
		:: g_offered ->
			RECLAIM_ALL(r);
			if
			:: r == owned
			:: else -> s_doubt = true; goto next_watch
			fi
		:: !g_offered
		fi;
#endif
		atomic { run_source() };
next_watch:
		if
		:: hung -> hung = false; goto watch
		:: else
		fi;
over:
		atomic { gs = ended; r = owned; i = 0; hung = false }
	} unless {
		atomic { gs == killed -> r = owned; i = 0; hung = false }
	}
}

/* ---- the destination's engine: session/dest.c ---- */

active proctype dest_engine()
{
	mtype:got r = owned;
	short i;
	bool load_begun, may_have_run;

	{
		EXPECT(to_d, PREPARE, undo);
		/* handle_prepare: lm_guardian_pause, lm_vm_state_load */
		atomic { load_begun = true; ph_d = PAUSED };
		atomic { if :: qd == waits -> qd = loading :: else -> goto undo fi };
		MAY_FAIL(undo);
		SEND(to_s, PREPARED, undo);
		EXPECT(to_d, SAVED, undo);
		/* handle_saved: fence, check_saved, lm_vm_state_wait */
#ifndef BREAK_FENCE
		lanes = false;
#endif
		MAY_FAIL(undo);
		atomic { if :: qd == loading -> qd = loaded; loaded_once = true :: else -> goto undo fi };
		SEND(to_s, LOADED, undo);
#ifdef BREAK_COMMIT
		atomic { run_dest() };
#endif
#if LOCKS
		EXPECT(to_d, OFFER, undo);
#endif
		EXPECT(to_d, COMMIT, undo);
		MAY_FAIL(undo);
		/* handle_commit: lm_guardian_commit */
		ph_d = COMMITTED;
#ifndef BREAK_LOCK_TAKE
		TAKE_ALL(r);
#endif
		if
		:: r == owned
		:: else -> goto undo
		fi;
		/* run_guest: check_vm_lives, lm_vm_resume */
		if
		:: atomic { qd == loaded -> run_dest() }
		:: atomic { qd == loaded && may(K_CONT) -> faults--; hard = true; printf("QEMU refuses cont\n") };
			goto undo
		:: atomic { qd == loaded && may(K_CONT) -> faults--; hard = true; may_have_run = true;
			if :: run_dest() :: skip fi };
			goto undo
		:: qd == gone -> goto undo
		:: qd == runs
		fi;
		if
		:: qd == gone -> may_have_run = true; goto undo
		:: else
		fi;
		ph_d = IDLE;
		if :: atomic { up -> to_s!RESUMED } :: !up fi;
		goto over;
undo:		/* dest_undo */
#ifndef BREAK_MAY_HAVE_RUN
		if
		:: may_have_run -> goto over
		:: else
		fi;
#endif
#ifdef BREAK_ABORT
		if :: atomic { up -> to_s!ABORT } :: !up fi;
#endif
		if
		:: load_begun -> qd = gone
		:: else
		fi;
		ph_d = IDLE;
		GIVE_BACK(r);
		if :: atomic { up -> to_s!ABORT } :: !up fi;
over:
		atomic { ed = ended; up = false; r = owned; i = 0; load_begun = false; may_have_run = false }
	} unless {
		atomic { ed == killed -> r = owned; i = 0; load_begun = false; may_have_run = false }
	}
}

/* ---- the destination's guardian ---- */

active proctype dest_guardian()
{
	mtype:got r = owned;
	short i;

	{
#ifdef BREAK_GUARDIAN
		goto over;
#endif
		if
		:: ed == ended -> goto over
		:: atomic { ed == killed && ph_d == PAUSED -> ph_d = REVOKED }; goto end_it
		:: ed == killed && ph_d == IDLE -> goto over
		:: ed == killed && ph_d == COMMITTED
		fi;
		/* take_and_run, LM_RESCUE_RUN: run_loaded */
#ifndef BREAK_GUARDIAN_TAKE
		TAKE_ALL(r);
#endif
		if
		:: r == owned -> goto run_it
#ifdef BREAK_GUARDIAN_END
		:: else -> goto end_it
#else
		/* The source has the first one.  Anything else may pass, and the guest may even run already. */
		:: r == taken && i == 0 -> goto end_it
		:: else -> goto over
#endif
		fi;
run_it:
		atomic { run_dest() };
		goto over;
end_it:		/* LM_RESCUE_END */
		qd = gone;
#ifdef BREAK_GUARDIAN_END
		GIVE_BACK(r);
#endif
over:
		atomic { gd = ended; r = owned; i = 0 }
	} unless {
		atomic { gd == killed -> r = owned; i = 0 }
	}
}

/* ---- somebody with `migrate-rdma resolve`, who says nothing that is not so ---- */

active proctype person()
{
	mtype:got r = owned;
	short i;
	bool never_ran;

end:	do
	/* resolve --end-here at the destination: what is there does not run, and the guest is to go on elsewhere */
	:: atomic { !here_d && !here_s && stopped_s && !third_asks && (qd == waits || qd == loading || qd == loaded) ->
		qd = gone; asked = true; printf("a person ends the destination's QEMU\n") }
	/* The source said `completed`, or it runs at the destination: resolve --end-here at the source */
	:: atomic { !here_s && stopped_s && (s_done || qd == runs) -> qs = gone; printf("a person ends the source's QEMU\n") }
#if LOCKS
	/* resolve --auto: the locks know, so nothing has to be said */
	:: atomic { !here_s && stopped_s && !third_asks && !down_s && mine_s(0) && mine_s(LOCKS - 1) -> asked = true };
		RECLAIM_ALL(r);
		atomic { if :: r == owned && stopped_s -> run_source() :: else fi; r = owned; i = 0 }
	:: atomic { !here_d && qd == loaded && !down_d && mine_d(0) && mine_d(LOCKS - 1) -> asked = true };
		ACQUIRE_ALL(r);
		atomic { if :: r == owned -> run_dest() :: else fi; r = owned; i = 0 }
	/* and of locks that are free: it is certain that it has not run at the destination, and never will */
	:: atomic { !here_s && stopped_s && !third_asks && !down_s && qd == gone && !d_ran && !here_d &&
		    lk[0] != at_dest && lk[LOCKS - 1] != at_dest ->
		asked = true; lk[0] = at_source; lk[LOCKS - 1] = at_source; run_source() }
	/* lock release there, or lock break here when that host is dead: no guest is there, nor has one run there */
	:: atomic { !here_d && qd == gone && !d_ran && !down_s && lk[0] == at_dest -> lk[0] = free; asked = true }
#if LOCKS > 1
	:: atomic { !here_d && qd == gone && !d_ran && !down_s && lk[1] == at_dest -> lk[1] = free; asked = true }
#endif
#else
	/* resolve --run-here at the source: the destination's QEMU has ended, and has never run the guest */
#ifdef BREAK_HAS_RUN
	:: atomic { !here_s && stopped_s && qd == gone -> asked = true; run_source() }
#else
	:: atomic { !here_s && stopped_s && qd == gone && !d_ran -> asked = true; run_source() }
#endif
	:: atomic { !here_d && qd == loaded && qs == gone && !s_back -> asked = true; run_dest() }
#endif
	od
}

/* ---- what goes wrong ---- */

active proctype fate()
{
end:	do
	:: faults > 0 -> faults = 0
	:: atomic { may(K_ENGINES) && es == alive -> faults--; kill_source_engine() }
	:: atomic { may(K_ENGINES) && ed == alive -> faults--; kill_dest_engine() }
	:: atomic { may(K_GUARDIANS) && gs == alive -> faults--; gs = killed; hard = true; printf("the source's guardian dies\n") }
	:: atomic { may(K_GUARDIANS) && gd == alive -> faults--; gd = killed; hard = true; printf("the destination's guardian dies\n") }
	:: atomic { may(K_QEMUS) && qs != gone -> faults--; qs = gone; s_died = true; hard = true; printf("the source's QEMU dies\n") }
	:: atomic { may(K_QEMUS) && qd != gone -> faults--; qd = gone; d_died = true; hard = true; printf("the destination's QEMU dies\n") }
	:: atomic { may(K_HOSTS) && qs != gone -> faults--; hard = true; kill_source_engine();
		if :: gs == alive -> gs = killed :: else fi; qs = gone; s_died = true; printf("the source's host dies\n") }
	:: atomic { may(K_HOSTS) && qd != gone -> faults--; hard = true; kill_dest_engine();
		if :: gd == alive -> gd = killed :: else fi; qd = gone; d_died = true; printf("the destination's host dies\n") }
	:: atomic { may(K_NET) && up -> faults--; up = false; printf("the connection breaks\n") }
#if LOCKS
	:: atomic { may(K_STORAGE) && !down_s -> faults--; down_s = true; hard = true; printf("the source does not reach the storage\n") }
	:: atomic { may(K_STORAGE) && !down_d -> faults--; down_d = true; hard = true; printf("the destination does not reach the storage\n") }
	:: down_s -> down_s = false
	:: down_d -> down_d = false
	:: atomic { may(K_END) && qd == runs && !here_d && all_are(at_dest) && !down_d ->
		faults--; qd = gone; ended_well = true; lk[0] = free;
#if LOCKS > 1
		lk[1] = free;
#endif
		printf("the guest ends at the destination, its locks are released\n") }
	/* The next migration, to a third host, with offers of its own. */
	:: atomic { may(K_THIRD) && qs == runs && s_back && !here_s && all_are(at_source) && again[0] ->
		faults--; third_asks = true; qs = saved; lk[0] = offered;
#if LOCKS > 1
		lk[1] = offered;
#endif
		printf("the source offers the locks to a third host\n") }
	:: atomic { third_asks && all_are(offered) ->
		lk[0] = at_third;
#if LOCKS > 1
		lk[1] = at_third;
#endif
		third_runs = true; printf("the guest runs at a third host\n") }
#endif
	od
}

#include "commit_rules.pml"
