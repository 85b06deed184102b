#include "cdf_table.h"

#include <algorithm>

namespace fasdiff {

Status MakeCdfTable(int32_t offset, int32_t num_regular, const uint16_t* frequencies,
                    CdfTable* table) {
  if (num_regular < 1 || num_regular > kMaxRegularSymbols) return Status::kModelBadTable;
  const size_t count = static_cast<size_t>(num_regular) + 1;
  table->offset = offset;
  table->num_regular = num_regular;
  table->cdf.assign(count + 1, 0);
  for (size_t i = 0; i < count; ++i) {
    if (frequencies[i] == 0) return Status::kModelBadTable;
    table->cdf[i + 1] = table->cdf[i] + frequencies[i];
  }
  return table->cdf.back() == kCdfTotal ? Status::kOk : Status::kModelBadTableSum;
}

uint32_t EscapeNumber(const CdfTable& table, int32_t value) {
  const int32_t end = table.offset + table.num_regular;
  if (value >= end) return static_cast<uint32_t>(2 * (value - end));
  return static_cast<uint32_t>(2 * (table.offset - 1 - value) + 1);
}

int EscapePrefix(uint32_t number) {
  int prefix = 0;
  while (((number + 1) >> (prefix + 1)) != 0) ++prefix;
  return prefix;
}

void EncodeValue(const CdfTable& table, int32_t value, RangeEncoder* encoder) {
  const int32_t index = value - table.offset;
  if (index >= 0 && index < table.num_regular) {
    encoder->Encode(table.cdf[static_cast<size_t>(index)], table.Frequency(index));
    return;
  }
  encoder->Encode(table.cdf[static_cast<size_t>(table.num_regular)],
                  table.Frequency(table.num_regular));
  const uint32_t number = EscapeNumber(table, value);
  const int prefix = EscapePrefix(number);
  for (int i = 0; i < prefix; ++i) encoder->EncodeBit(0);
  for (int i = prefix; i >= 0; --i) encoder->EncodeBit(((number + 1) >> i) & 1);
}

Status DecodeValue(const CdfTable& table, RangeDecoder* decoder, int32_t* value) {
  uint32_t target = 0;
  Status status = decoder->Target(&target);
  if (status != Status::kOk) return status;
  const auto above = std::upper_bound(table.cdf.begin(), table.cdf.end(), target);
  const int32_t index = static_cast<int32_t>(above - table.cdf.begin()) - 1;
  status = decoder->Consume(table.cdf[static_cast<size_t>(index)], table.Frequency(index));
  if (status != Status::kOk) return status;
  if (index < table.num_regular) {
    *value = table.offset + index;
    return Status::kOk;
  }
  int prefix = 0;
  uint32_t bit = 0;
  while (true) {
    status = decoder->DecodeBit(&bit);
    if (status != Status::kOk) return status;
    if (bit == 1) break;
    if (++prefix > kMaxEscapePrefix) return Status::kStreamEscapeTooLong;
  }
  uint32_t code = 1;
  for (int i = 0; i < prefix; ++i) {
    status = decoder->DecodeBit(&bit);
    if (status != Status::kOk) return status;
    code = (code << 1) | bit;
  }
  const int32_t number = static_cast<int32_t>(code - 1);
  *value = (number & 1) == 0 ? table.offset + table.num_regular + (number >> 1)
                             : table.offset - 1 - (number >> 1);
  return Status::kOk;
}

int32_t MostProbableValue(const CdfTable& table) {
  int32_t best = 0;
  for (int32_t i = 1; i < table.num_regular; ++i) {
    if (table.Frequency(i) > table.Frequency(best)) best = i;
  }
  return table.offset + best;
}

}  // namespace fasdiff
