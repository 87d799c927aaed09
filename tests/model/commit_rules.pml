/* SPDX-License-Identifier: Apache-2.0 */
/* The rules, and states that have to be reached, for commit.pml. */

/* Never two, and nobody goes on from before what another has done to the world. */
#define TWO       ((qs == runs && qd == runs) || (qs == runs && d_ran) || (qd == runs && s_back) || (third_runs && d_ran))
/* Nobody runs without all locks; so never two that can write, and no lock is nobody's while a guest runs. */
#define UNLOCKED  ((qs == runs && !all_are(at_source)) || (qd == runs && !all_are(at_dest)))
/* Nothing of the source can reach the memory of a guest that runs. */
#define UNFENCED  (qd == runs && lanes)
/* In the end it runs, unless a QEMU died that had it. */
#define RUNS      (qs == runs || qd == runs || third_runs || ended_well)
#define LOST      (s_died || (d_died && d_ran))
/* Nobody has to be asked when only engines and connections fail, with locks; without, only after COMMIT. */
#define UNASKED   (!asked || hard || (LOCKS == 0 && commit_sent))

/* That the rules do not hold for want of anything that happens */
#define REACH_MOVED           (s_done && qd == runs && qs == gone)
#define REACH_DOUBT           (s_doubt && !here_s && stopped_s)
#define REACH_DOUBT_RUNS      (s_doubt && qd == runs)
#define REACH_DOUBT_BACK      (s_doubt && asked && qs == runs)
#define REACH_GUARDIAN_BACK   (es == killed && gs == ended && s_back && !asked)
#define REACH_GUARDIAN_RUNS   (ed == killed && gd == ended && qd == runs)
#define REACH_BOTH_GUARDIANS  (es == killed && ed == killed && qd == runs && !asked && gs == ended && gd == ended)
#define REACH_PAUSED_AGAIN    (ph_s == REVOKED && s_back == false && qs == paused)
#define REACH_RECLAIMED       (commit_sent && s_back && !asked && all_are(at_source) && es == alive)
#define REACH_GUARDIAN_RECLAIMS (commit_sent && s_back && !asked && es == killed && gd == ended && qd == gone)
#define REACH_ONE_EACH        (lk[0] == at_dest && lk[LOCKS - 1] == offered && es == alive && ed == alive)
#define REACH_LATE_TAKE       (ed == ended && qd == gone && ph_s == IDLE && es == ended && s_back && commit_sent && !asked)
#define REACH_GIVEN_BACK      (lk[0] == free && qd == gone && !d_ran)
#define REACH_RELEASED        (lk[0] == free && ended_well && stopped_s)
#define REACH_THIRD           (third_runs && ed == alive)
#define REACH_AUTO_THERE      (asked && qd == runs && s_doubt)

active proctype rules()
{
end:	atomic {
		if
		:: TWO -> assert(!TWO)
		:: UNLOCKED -> assert(!UNLOCKED)
		:: UNFENCED -> assert(!UNFENCED)
#ifdef REACH
		:: REACH -> assert(!(REACH))
#endif
		:: timeout ->
			assert(es != alive && ed != alive && gs != alive && gd != alive);
			assert(RUNS || LOST);
			assert(UNASKED)
		fi
	}
}
