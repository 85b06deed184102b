// The integer entropy model: tables, quantiser and networks as read from `entropy_model.bin`.
//
// The file is little-endian throughout. Counts are checked against the limits below and against
// the bytes that are left before anything is allocated; bytes after the last layer are refused.
//
//   char  magic[8] = "FSDEM\0\0\1"
//   u16   num_s 0..256, num_z 1..256, num_y 1..512, num_features 1..256, num_groups 1..4
//   u16   group_size[num_groups]               each >= 1, sum num_y
//   u16   num_q = 253, num_scales 1..256
//   u8    ctx_shift, mean_shift, scale_shift (0..24), z_shift (0..7)
//   u32   num_tables                           4 * num_scales .. 4096
//   table: i16 offset, u16 num_regular 1..1024, u16 frequency[num_regular + 1]   sum 65536
//   (i16 base, u16 table) for each component of s, then for each channel of z
//   i32   step[num_q][num_y]                   Q12: y units per symbol, 1 .. 2^24 - 1
//   i32   gain[num_q][num_y]                   Q8: symbols per y unit, 1 .. 2^20 - 1
//   i16   index_offset[num_q][num_y]
//   networks: h_s_z, h_s_y, then pass 0 .. 2 * num_groups - 1, each
//     u16 num_layers 1..8, then per layer
//       u16 cin, cout (cout <= 512); u8 k (1 or 3), shift (1..24); i16 lo, hi
//       i8 weight[cout][cin][k][k]; i32 bias[cout], |bias| < 2^24
//
// What the networks take and give (channels):
//   h_s_z: num_z -> any; h_s_y: that + 1 -> num_features;
//   pass 2g + h: num_features + sizes of groups before g + (h ? group_size[g] : 0)
//                -> 2 * group_size[g], means before scales.
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
constexpr int kMaxGroups = 4;
constexpr int kMaxTables = 4096;

struct StaticCode {
  int32_t base = 0;  // symbol = base + the table's value.
  uint16_t table = 0;
};

struct EntropyModel {
  int num_s = 0, num_z = 0, num_y = 0, num_features = 0, num_groups = 0, num_q = 0, num_scales = 0;
  int group_size[kMaxGroups] = {};
  int ctx_shift = 0, mean_shift = 0, scale_shift = 0, z_shift = 0;
  std::vector<CdfTable> tables;
  std::vector<StaticCode> s_code;     // [num_s].
  std::vector<StaticCode> z_code;     // [num_z].
  std::vector<int32_t> step;          // [num_q, num_y], Q12.
  std::vector<int32_t> gain;          // [num_q, num_y], Q8.
  std::vector<int16_t> index_offset;  // [num_q, num_y].
  IntegerNet h_s_z, h_s_y;
  std::vector<IntegerNet> passes;  // [2 * num_groups].

  // The row of quality q in step, gain or index_offset.
  template <typename T>
  const T* Row(const std::vector<T>& table, int q) const {
    return table.data() + static_cast<ptrdiff_t>(q) * num_y;
  }
};

// Reads a whole model file. On an error *model is left half-filled and must not be used.
Status ParseEntropyModel(const uint8_t* data, size_t size, EntropyModel* model);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_ENTROPY_MODEL_H_
