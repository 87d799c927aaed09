/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LM_SIDE_H
#define LM_SIDE_H

enum lm_side { LM_SOURCE, LM_DEST };

#endif
