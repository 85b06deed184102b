// The integer entropy model: tables, quantisers and networks as read from `entropy_model.bin`.
//
// The file is little-endian throughout. Counts are checked against the limits below and against
// the bytes that are left before anything is allocated; bytes after the last layer are refused.
// Version 5, which the trainer writes:
//
//   char  magic[8] = "FSDEM\0\0\5"
//   u16   num_s 0..256, num_z 1..256, num_y 1..512, num_features 1..256, num_groups 1..16
//   (u16 size, u8 scan, u8 start)[num_groups]  size >= 1, sum num_y; scan 1..3, the passes;
//                                              start 0..252, never falling, 0 for the first
//   u16   num_q = 253, num_scales 1..256
//   u8    ctx_shift, mean_shift, scale_shift (0..24)
//   u32   num_tables                           num_scales .. 4096
//   table: i16 offset, u16 num_regular 1..1024, u16 frequency[num_regular + 1]   sum 65536
//   i16   s_mean[num_s], s_scale[num_s]
//   quantiser of s, of z, of y, each
//     i32   step[num_q][channels]              Q12: latent units per symbol, 1 .. 2^24 - 1
//     i32   gain[num_q][channels]              Q8: symbols per latent unit, 1 .. 2^20 - 1
//     i16   index_offset[num_q][channels]
//   networks: z pass 0 and 1, h_s_z, h_s_y, then y pass 0, 1, ..., each
//     u16 num_layers 1..8, then per layer
//       u16 cin, cout (cout <= 512); u8 k (1 or 3), shift (1..24); i16 lo, hi
//       i8 weight[cout][cin][k][k]; i32 bias[cout], |bias| < 2^24
//
// A group is coded from quality `start` on; below, it is zero and its passes are left out. Groups
// that start above 0 are the residual. Where the first of them starts (residual_from), nothing else
// depends on the quality any more: the rows of the quantisers of s, z and the other groups, and the
// plane of the quality, stay what they are there.
//
// What the networks take and give (channels; P = 5 planes: quality, row, column, height, width):
//   z pass h: P + num_s + (h ? num_z : 0) -> 2 * num_z, means before scales;
//   h_s_z: num_z + num_s -> any; h_s_y: that + P -> num_features;
//   y pass t of group g: num_features + sizes of groups before g + (t ? size[g] : 0)
//                        -> 2 * size[g], means before scales.
//
// Version 1 (releases 0.1.x) is read as well: magic ends in 1; four tables a scale; a fourth shift
// u8 z_shift (0..7) follows scale_shift; groups have no scan, which is 2, and no start,
// which is 0; instead of s_mean and s_scale come (i16 base, u16 table) for each component of s,
// then for each channel of z; only y has a quantiser; there are no z passes, h_s_z takes num_z,
// h_s_y that + 1 (the quality).
#ifndef FASDIFF_CSRC_ENTROPY_MODEL_H_
#define FASDIFF_CSRC_ENTROPY_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cdf_table.h"
#include "integer_net.h"
#include "status.h"

namespace fasdiff {

constexpr int kNumQualities = 253;  // Quarter steps of quality 0..63.
constexpr int kMaxGroups = 16;
constexpr int kMaxScan = 3;
constexpr int kNoResidual = 255;
constexpr int kMaxTables = 4096;
constexpr int kNumPlanes = 5;

// What pass `step` of a scan codes: all; even, then odd; or both even, both odd, then odd sums.
// REQUIRES: 1 <= scan <= 3, 0 <= step < scan.
Lattice LatticeOf(int scan, int step);

struct StaticCode {
  int32_t base = 0;  // symbol = base + the table's value.
  uint16_t table = 0;
};

// Latent units <-> symbols of each channel at each quality.
struct Quantiser {
  int channels = 0;
  std::vector<int32_t> step;          // [num_q, channels], Q12.
  std::vector<int32_t> gain;          // [num_q, channels], Q8.
  std::vector<int16_t> index_offset;  // [num_q, channels].

  size_t At(int q, int c) const {
    return static_cast<size_t>(q) * static_cast<size_t>(channels) + static_cast<size_t>(c);
  }
};

struct EntropyModel {
  int version = 0;  // Of the file: 1 or 5.
  int num_s = 0, num_z = 0, num_y = 0, num_features = 0, num_groups = 0, num_q = 0, num_scales = 0;
  int group_size[kMaxGroups] = {};
  int group_scan[kMaxGroups] = {};   // Passes of each group; see LatticeOf.
  int group_start[kMaxGroups] = {};  // Quality from which each group is coded.
  int residual_from = kNoResidual;   // The first that is not 0.
  int ctx_shift = 0, mean_shift = 0, scale_shift = 0;
  std::vector<CdfTable> tables;
  Quantiser y;
  IntegerNet h_s_z, h_s_y;
  std::vector<IntegerNet> passes;  // [num_passes()], group by group.

  int num_passes() const {
    int sum = 0;
    for (int g = 0; g < num_groups; ++g) sum += group_scan[g];
    return sum;
  }

  // Channels of y that are not the residual's.
  int num_base() const {
    int sum = 0;
    for (int g = 0; g < num_groups && group_start[g] == 0; ++g) sum += group_size[g];
    return sum;
  }

  // The quality that all but the residual see.
  int BaseQuality(int q) const { return q < residual_from ? q : residual_from; }

  // Levels per symbol are 2^unit_bits().
  int unit_bits() const { return version == 1 ? 0 : 4; }

  // Version 5.
  std::vector<int16_t> s_mean, s_scale;  // [num_s], as a network would give them.
  Quantiser s, z;
  IntegerNet z_passes[2];

  // Version 1: s and z are coded with one table each, whatever the quality.
  int z_shift = 0;
  std::vector<StaticCode> s_code, z_code;  // [num_s], [num_z].
};

// Reads a whole model file. On an error *model is left half-filled and must not be used.
Status ParseEntropyModel(const uint8_t* data, size_t size, EntropyModel* model);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_ENTROPY_MODEL_H_
