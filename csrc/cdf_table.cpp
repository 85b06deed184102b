#include "cdf_table.h"

namespace fasdiff {

Status MakeCdfTable(int32_t offset, int32_t num_regular, const uint16_t* frequencies,
                    CdfTable* table) {
  if (num_regular < 1 || num_regular > kMaxRegularSymbols) return Status::kModelBadTable;
  const size_t count = static_cast<size_t>(num_regular) + 1;
  table->offset = offset;
  table->num_regular = num_regular;
  table->cdf.assign(count + 1 + kCdfPadding, kCdfTotal);
  table->cdf[0] = 0;
  for (size_t i = 0; i < count; ++i) {
    if (frequencies[i] == 0) return Status::kModelBadTable;
    table->cdf[i + 1] = table->cdf[i] + frequencies[i];
  }
  table->most_probable = 0;
  for (int32_t i = 1; i < num_regular; ++i) {
    if (table->Frequency(i) > table->Frequency(table->most_probable)) table->most_probable = i;
  }
  const uint32_t largest = table->Frequency(table->most_probable);
  table->likely = largest > kCdfTotal / 3 ? table->most_probable : -1;
  return table->cdf[count] == kCdfTotal ? Status::kOk : Status::kModelBadTableSum;
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

void EncodeEscaped(const CdfTable& table, int32_t value, RangeEncoder* encoder) {
  encoder->Encode(table.cdf[static_cast<size_t>(table.num_regular)],
                  table.Frequency(table.num_regular), false);
  const uint32_t number = EscapeNumber(table, value);
  const int prefix = EscapePrefix(number);
  for (int i = 0; i < prefix; ++i) encoder->EncodeBit(0);
  for (int i = prefix; i >= 0; --i) encoder->EncodeBit(((number + 1) >> i) & 1);
}

Status DecodeEscaped(const CdfTable& table, RangeDecoder* decoder, int32_t* value) {
  int prefix = 0;
  uint32_t bit = 0;
  while (true) {
    const Status status = decoder->DecodeBit(&bit);
    if (status != Status::kOk) return status;
    if (bit == 1) break;
    if (++prefix > kMaxEscapePrefix) return Status::kStreamEscapeTooLong;
  }
  uint32_t code = 1;
  for (int i = 0; i < prefix; ++i) {
    const Status status = decoder->DecodeBit(&bit);
    if (status != Status::kOk) return status;
    code = (code << 1) | bit;
  }
  const int32_t number = static_cast<int32_t>(code - 1);
  *value = (number & 1) == 0 ? table.offset + table.num_regular + (number >> 1)
                             : table.offset - 1 - (number >> 1);
  return Status::kOk;
}

}  // namespace fasdiff
