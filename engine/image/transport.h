/* SPDX-License-Identifier: Apache-2.0 */
/* A transport that "fetches" out of an image. */
#ifndef LM_IMAGE_TRANSPORT_H
#define LM_IMAGE_TRANSPORT_H

#include "engine/transport/transport.h"
#include "image.h"

/* The image must outlive it.  NULL when memory is short. */
struct lm_transport *lm_transport_image_new(const struct lm_image *img);

#endif
