/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy, from the last scan to WHOLE: one page stays behind.  Engines die and are
 * followed by `migrate-rdma recover`, connections break, and somebody with `resolve`
 * ends and runs QEMUs.  commit.pml has the switchover itself in full, and the locks.
 *
 * As there: what is not inside one atomic { } can be cut by a kill.
 * Given by `run`: FAULTS, KINDS, RECOVERS (how often `recover` is called), BREAK_NAME, REACH.
 */
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef KINDS
#define KINDS 31
#endif
#ifndef RECOVERS
#define RECOVERS 2
#endif

#define K_ENGINES   1
#define K_GUARDIANS 2
#define K_QEMUS     4
#define K_HOSTS     8
#define K_NET       16
#define may(kind)   (faults > 0 && (KINDS & (kind)))

mtype:vm = { loading, loaded, runs, saved, gone };
mtype:phase = { IDLE, PAUSED, COMMITTED };
mtype:proc = { alive, ended, killed, starts };
mtype:pc = { NONE, SENT, ANSWERED };                   /* enum lm_pccommit, in the source's state file */
mtype:page = { missing, placed, shown };
mtype:msg = { LEFT_END, SAVED, LOADED, COMMIT, RESUMED, ABORT, RECOVER, OPENED, WHOLE };

mtype:vm qs = saved, qd = loading;
mtype:phase ph_s = PAUSED, ph_d = PAUSED;
mtype:proc es = alive, ed = alive, gs = alive, gd = alive;
mtype:pc pc_s = NONE;
chan to_d = [4] of { mtype:msg };
chan to_s = [4] of { mtype:msg };
bool up = true;
bool s_over, d_over;                        /* the process of an engine is gone */
bool d_listens;                             /* lm_dest_accept; or RECOVER came and is not answered yet */
bool answers;                               /* the source's lanes are open: answer_worker */
mtype:page page = missing;                  /* in the destination's memory: to be fetched, there, seen by the guest */
bool marked;                                /* its bit in the destination's state file */
bool watched = true;                        /* the userfaultfd is open inside the destination's QEMU */
bool pc_d = true, whole;                    /* the destination's state file, and its head->whole */
byte faults = FAULTS, recovers = RECOVERS;

/* What has been. */
bool known, written, d_ran, s_back, s_done, s_doubt, s_died, d_died, commit_sent;

#define here_s  (!s_over || es == starts || gs == alive)
#define here_d  (!d_over || ed == starts || gd == alive)

#define MAY_FAIL(label)   if :: skip :: goto label fi
#define SEND(to, m, label) \
	if :: atomic { up -> assert(nfull(to)); to!m } :: !up -> goto label :: !up -> skip fi
#define EXPECT(from, m, label) \
	if :: from?m :: from?[ABORT] -> from?ABORT; goto label :: !up -> goto label :: goto label fi

inline run_source()
{
	if
	:: qs == saved -> qs = runs; s_back = true; printf("the guest runs at the source again\n")
	:: else -> skip
	fi
}

inline run_dest()
{
	if
	:: qd == loaded -> qd = runs; d_ran = true; printf("the guest runs at the destination\n")
	:: else -> skip
	fi
}

/* Whoever goes away closes its sockets. */
inline lose() { up = false; answers = false }

/* ---- the source: session/switchover.c, postcopy/serve.c ---- */

active proctype source_engine()
{
	bool again;

begin:
	{
		if
		:: again -> goto find
		:: else
		fi;
		/* last_copy: lm_postcopy_leave(last); save_state, send_saved; the lanes were opened before the pause */
		answers = true;
		SEND(to_d, LEFT_END, undo);
		SEND(to_d, SAVED, undo);
		EXPECT(to_s, LOADED, undo);
		/* commit: lm_guardian_commit, state_committed */
		atomic { ph_s = COMMITTED; commit_sent = true };
		pc_s = SENT;
		if
		:: atomic { up -> to_d!COMMIT; printf("COMMIT is sent\n") }
		:: !up -> goto uncommitted
		:: !up
		fi;
		/* await_resumed */
		if
		:: to_s?RESUMED -> goto serve
		:: to_s?ABORT -> goto uncommitted
		:: !up
		:: skip
		fi;
find:		/* recover: connect again and again, RECOVER */
		if
		:: atomic { lose() }; goto seek
		:: up && !again -> goto find_ends            /* lm_session_stage may fail */
		fi;
seek:
		if
		:: atomic { d_listens -> d_listens = false; up = true;
			do :: to_d?_ :: to_s?_ :: empty(to_d) && empty(to_s) -> break od;
			to_d!RECOVER }
		:: goto find_ends                            /* --recover-timeout */
		fi;
		if
		:: to_s?OPENED -> answers = true; goto serve
		:: to_s?WHOLE -> goto all_there
		:: !up -> goto seek
		:: goto find
		fi;
find_ends:
		if
		:: pc_s == SENT -> s_doubt = true            /* in_doubt */
		:: else                                      /* interrupted */
		fi;
		goto over;
serve:		/* lm_postcopy_serve */
		pc_s = ANSWERED;
#ifdef BREAK_RAM_AT_COMMIT
		goto all_there;
#endif
		if
		:: to_s?WHOLE -> goto all_there
		:: to_s?RESUMED -> goto serve
		:: !up -> goto find
		:: goto find                                 /* tick: silent; a lane was lost */
		fi;
all_there:
		if :: atomic { up -> to_d!WHOLE } :: !up fi;
		pc_s = NONE;                                 /* lm_pcstate_remove */
		s_done = true;
		goto over;
uncommitted:
		atomic { ph_s = PAUSED; commit_sent = false };
		pc_s = NONE;
undo:		/* lm_switchover_undo, tell_peer */
		answers = false;
		atomic { run_source() };
		ph_s = IDLE;
		if :: atomic { up -> to_d!ABORT } :: !up fi;
over:
		atomic { es = ended; s_over = true; lose() }
	} unless {
		atomic { es == killed -> s_over = true }
	};
end:	/* migrate-rdma recover --to: lm_recover_open refuses without a COMMIT */
	atomic { es == starts -> es = alive; s_over = false; again = true };
	goto begin
}

active proctype source_guardian()
{
	{
		if
		:: es == ended || (es == killed && ph_s == IDLE)
		:: es == killed && ph_s == PAUSED -> atomic { run_source() }
		:: es == killed && ph_s == COMMITTED -> s_doubt = true
		fi;
		gs = ended
	} unless {
		gs == killed
	}
}

/* ---- the destination: session/dest.c, postcopy/pull.c, postcopy/puller.c ---- */

active proctype dest_engine()
{
	bool again;
	bool have;                              /* this engine fetched it: another one knows only what is marked */

begin:
	{
		if
		:: again -> goto pull
		:: else
		fi;
#ifdef BREAK_LEFT_END
		if :: page = placed :: skip fi;
#endif
		/* lm_postcopy_left: faults are answered from here on; QEMU, which loads, may touch the page */
		EXPECT(to_d, LEFT_END, undo);
		known = true;
		EXPECT(to_d, SAVED, undo);
		atomic { if :: qd == loading -> qd = loaded :: else -> goto undo fi };
		SEND(to_s, LOADED, undo);
		EXPECT(to_d, COMMIT, undo);
		ph_d = COMMITTED;
		atomic { if :: qd == loaded -> run_dest() :: qd == gone -> goto undo :: qd == runs fi };
		ph_d = IDLE;
		if :: atomic { up -> to_s!RESUMED } :: !up fi;
pull:		/* lm_postcopy_pull */
		if
		:: qd == gone -> goto over
		:: qd != gone && (whole || (page == shown && marked)) -> goto let_go
#ifdef BREAK_WHOLE_EARLY
		:: page != shown -> goto let_go
#endif
		/* fetch_rest, puller.c: a run comes whole */
		:: atomic { !marked && !have && up && answers && qs != gone ->
			assert(!written); have = true; page = placed }
		/* lm_arrival: the bit, then the guest may see it */
#ifdef BREAK_WHOLE_FIRST
		:: page == placed -> page = shown
		:: page == shown && !marked -> marked = true
#else
		:: page == placed && !marked -> marked = true
		:: page == placed && marked -> page = shown
#endif
		:: !up -> goto listen
		:: atomic { lose() }; goto listen            /* silence, a lane was lost */
		fi;
		goto pull;
listen:		/* recover */
		d_listens = true;
		if
		:: to_d?RECOVER -> skip
		:: atomic { d_listens -> d_listens = false }; goto over      /* interrupted */
		fi;
		SEND(to_s, OPENED, listen);
		goto pull;
let_go:		/* lm_pager_finish, tell_source: say_whole, say_whole_again */
		whole = true;
		watched = false;
say:
		if
		:: atomic { up -> to_s!WHOLE }
		:: !up -> goto hear
		fi;
		if
		:: to_d?WHOLE -> goto told
		:: !up -> goto hear
		:: atomic { lose() }; goto hear
		fi;
hear:
		d_listens = true;
		if
		:: to_d?RECOVER -> goto say
		:: atomic { d_listens -> d_listens = false }; goto told      /* "its QEMU can be ended" */
		fi;
told:
		pc_d = false;
		goto over;
undo:		/* dest_undo */
		qd = gone;
		ph_d = IDLE;
		pc_d = false;
		if :: atomic { up -> to_s!ABORT } :: !up fi;
over:
		atomic { ed = ended; d_over = true; d_listens = false; lose() }
	} unless {
		atomic { ed == killed -> d_over = true }
	};
#ifdef BREAK_PAGER_CLOSE
	watched = false;
#endif
end:	/* migrate-rdma recover --listen */
	atomic { ed == starts -> ed = alive; d_over = false; again = true; have = false };
	goto begin
}

active proctype dest_guardian()
{
	{
		if
		:: ed == ended || (ed == killed && ph_d == IDLE)
		:: ed == killed && ph_d == PAUSED -> qd = gone
		:: ed == killed && ph_d == COMMITTED -> atomic { run_dest() }
		fi;
		gd = ended
	} unless {
		gd == killed
	}
}

/* ---- people ---- */

active proctype person()
{
end:	do
	:: atomic { recovers > 0 && !here_s && qs == saved && pc_s != NONE && (pc_d || ed == alive) && qd == runs ->
		recovers--; es = starts; printf("recover at the source\n") }
	:: atomic { recovers > 0 && !here_d && qd == runs && pc_d ->
		recovers--; ed = starts; printf("recover at the destination\n") }
	/* After `completed`, and resolve --end-here, which check_postcopy refuses */
	:: atomic { !here_s && qs == saved && s_done -> qs = gone; printf("the source's QEMU is ended\n") }
#ifdef BREAK_CHECK_POSTCOPY
	:: atomic { !here_s && qs == saved && qd == runs -> qs = gone; printf("resolve --end-here at the source\n") }
#else
	:: atomic { !here_s && qs == saved && qd == runs && pc_s == NONE -> qs = gone; printf("resolve --end-here at the source\n") }
#endif
	/* resolve at the destination: what has not run there is ended, so that it never will; then the source */
	:: atomic { !here_d && !here_s && qs == saved && (qd == loading || qd == loaded) -> qd = gone }
	:: atomic { !here_s && qs == saved && qd == gone && !d_ran && pc_s != ANSWERED -> run_source() }
	:: atomic { !here_d && qd == loaded && qs == gone && !s_back -> run_dest() }
	od
}

/* ---- what goes wrong ---- */

inline kill_source_engine() { if :: es == alive -> es = killed; lose() :: else fi }
inline kill_dest_engine() { if :: ed == alive -> ed = killed; d_listens = false; lose() :: else fi }

active proctype fate()
{
end:	do
	:: faults > 0 -> faults = 0
	:: atomic { may(K_ENGINES) && es == alive -> faults--; kill_source_engine(); printf("the source's engine dies\n") }
	:: atomic { may(K_ENGINES) && ed == alive -> faults--; kill_dest_engine(); printf("the destination's engine dies\n") }
	:: atomic { may(K_GUARDIANS) && gs == alive -> faults--; gs = killed }
	:: atomic { may(K_GUARDIANS) && gd == alive -> faults--; gd = killed }
	:: atomic { may(K_QEMUS) && qs != gone -> faults--; qs = gone; s_died = true; printf("the source's QEMU dies\n") }
	:: atomic { may(K_QEMUS) && qd != gone -> faults--; qd = gone; d_died = true; printf("the destination's QEMU dies\n") }
	:: atomic { may(K_HOSTS) && qs != gone -> faults--; kill_source_engine();
		if :: gs == alive -> gs = killed :: else fi; qs = gone; s_died = true; printf("the source's host dies\n") }
	:: atomic { may(K_HOSTS) && qd != gone -> faults--; kill_dest_engine();
		if :: gd == alive -> gd = killed :: else fi; qd = gone; d_died = true; printf("the destination's host dies\n") }
	:: atomic { may(K_NET) && up -> faults--; lose(); printf("the connection breaks\n") }
	/* The guest writes to a page that it sees. */
	:: atomic { qd == runs && page == shown && !written -> written = true }
	od
}

/* ---- the rules ---- */

#define TWO        ((qs == runs && qd == runs) || (qs == runs && d_ran) || (qd == runs && s_back))
/* It reads a page that has not come: nobody watches any more, or it was shown before it was known to be old. */
#define STALE      ((qd == runs && !watched && page != shown) || (page != missing && !known))
/* Somebody ended the source's QEMU while pages were only there. */
#define DROPPED    (qs == gone && !s_died && qd == runs && page == missing)
/* In the end: it runs with all its pages, or `recover` on both hosts can go on. */
#define RECOVERABLE (qd == runs && qs == saved && pc_s != NONE && pc_d)
#define WELL       (qs == runs || (qd == runs && page == shown) || RECOVERABLE)
#define LOST       (s_died || (d_died && d_ran))

#define REACH_WHOLE          (s_done && qd == runs && page == shown && qs == gone)
#define REACH_DOUBT          (s_doubt && qs == saved && !here_s)
#define REACH_FOUND          (pc_s == ANSWERED && s_doubt && answers && up)
#define REACH_BOTH_RECOVERED (recovers == 0 && es == ended && ed == ended && s_done && page == shown)
#define REACH_UNTOLD         (ed == ended && !pc_d && whole && !s_done && !here_s)
#define REACH_INTERRUPTED    (qd == runs && page == missing && ed == ended && es == ended)

active proctype rules()
{
end:	atomic {
		if
		:: TWO -> assert(!TWO)
		:: STALE -> assert(!STALE)
		:: DROPPED -> assert(!DROPPED)
#ifdef REACH
		:: REACH -> assert(!(REACH))
#endif
		:: timeout ->
			assert(!here_s && !here_d);
			assert(WELL || LOST)
		fi
	}
}
