// Where the bits of a stream go. For reports only: this is the one place that computes with
// probabilities as floating-point numbers, and nothing that is coded depends on it.
#ifndef FASDIFF_CSRC_PART_BITS_H_
#define FASDIFF_CSRC_PART_BITS_H_

#include "entropy_coder.h"
#include "entropy_model.h"
#include "status.h"

namespace fasdiff {

// Ideal bits of each part, -log2 of the table frequencies plus the escape bits:
// bits[0] of s, bits[1] of z, bits[2 + p] of pass p of y; 2 + num_passes() numbers.
// Errors as VisitValues.
Status PartBits(const EntropyModel& model, const LatentsView& latents, LatentSize size, int q,
                double* bits);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_PART_BITS_H_
