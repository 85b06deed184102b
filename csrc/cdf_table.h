// Integer CDF tables: `cdf` starts at 0, ends at 65536, strictly increasing. The last interval is
// the escape, followed by an Exp-Golomb code (order 0) of the distance past the table's ends.
#ifndef FASDIFF_CSRC_CDF_TABLE_H_
#define FASDIFF_CSRC_CDF_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "range_coder.h"
#include "status.h"

namespace fasdiff {

constexpr int kMaxRegularSymbols = 1024;
constexpr int kMaxEscapePrefix = 18;
constexpr int32_t kMinSymbol = -32768;
constexpr int32_t kMaxSymbol = 32767;

// A power of two bytes, so that a table is a shift away from its index.
struct alignas(128) CdfTable : Intervals {
  int32_t offset = 0;         // The smallest regular value.
  int32_t num_regular = 0;    // Regular values offset .. offset + num_regular - 1; count - 1.
  int32_t num_narrow = 0;     // Of them, those of 16 bits, the first ones.
  int32_t most_probable = 0;  // Index of the regular value with the largest frequency, the first.

  bool IsRegular(int32_t value) const { return value >= offset && value < offset + num_regular; }

  uint32_t Frequency(int32_t index) const {
    const size_t i = static_cast<size_t>(index);
    return cdf[i + 1] - cdf[i];
  }
};

// Fills *table from num_regular + 1 frequencies (the last is the escape's).
// kModelBadTable, kModelBadTableSum.
Status MakeCdfTable(int32_t offset, int32_t num_regular, const uint16_t* frequencies,
                    CdfTable* table);

// A value outside the regular ones as the number that the escape code carries:
// 2 * (distance above the top) or 2 * (distance below the bottom) + 1, from 0.
// REQUIRES: |value| < 2^17, which every symbol minus every base satisfies.
uint32_t EscapeNumber(const CdfTable& table, int32_t value);

// The number of prefix zeros of `number` in the escape code; it takes 2 * prefix + 1 bits.
int EscapePrefix(uint32_t number);

// What EncodeValue and DecodeValue do with a value that is not a regular one. The decoder has
// removed the escape's interval.
void EncodeEscaped(const CdfTable& table, int32_t value, RangeEncoder* encoder);
Status DecodeEscaped(const CdfTable& table, RangeDecoder* decoder, int32_t* value);

// Codes one value. REQUIRES: |value| < 2^17.
inline void EncodeValue(const CdfTable& table, int32_t value, RangeEncoder* encoder) {
  const int32_t index = value - table.offset;
  if (index >= 0 && index < table.num_regular) {
    encoder->Encode(table.cdf[static_cast<size_t>(index)], table.Frequency(index), table.shifts);
  } else {
    EncodeEscaped(table, value, encoder);
  }
}

// Reads one value, |value| < 2^19, between Open and Close of the decoder. kStreamEscapeTooLong,
// kStreamInvalidCode, kStreamTruncated.
FASDIFF_INLINE Status DecodeNext(const CdfTable& table, RangeDecoder* decoder,
                                 RangeDecoder::State* state, int32_t* value) {
  int32_t index = 0;
  Status status = decoder->Find(table, state, &index);
  *value = table.offset + index;
  if (status != Status::kOk || index < table.num_regular) return status;
  decoder->Close(*state);
  status = DecodeEscaped(table, decoder, value);
  *state = decoder->Open();
  return status;
}

// The same for a single value.
inline Status DecodeValue(const CdfTable& table, RangeDecoder* decoder, int32_t* value) {
  RangeDecoder::State state = decoder->Open();
  const Status status = DecodeNext(table, decoder, &state, value);
  decoder->Close(state);
  return status;
}

// EncodeValue and DecodeValue for many values at once, which takes less time; tables by index. Both
// stop at an index that no table has, kBadTableIndex, and at a value of more than 16 bits:
// kSymbolOutOfRange, kStreamSymbolOutOfRange.
Status EncodeValues(const std::vector<CdfTable>& tables, const uint16_t* indexes,
                    const int32_t* values, size_t count, RangeEncoder* encoder);
Status DecodeValues(const std::vector<CdfTable>& tables, const uint16_t* indexes, size_t count,
                    RangeDecoder* decoder, int32_t* values);

// The regular value with the largest frequency, the smallest such value on a tie.
inline int32_t MostProbableValue(const CdfTable& table) {
  return table.offset + table.most_probable;
}

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_CDF_TABLE_H_
