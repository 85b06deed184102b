#include "cdf_table.h"

#include <algorithm>

namespace fasdiff {

Status MakeCdfTable(int32_t offset, int32_t num_regular, const uint16_t* frequencies,
                    CdfTable* table) {
  if (num_regular < 1 || num_regular > kMaxRegularSymbols) return Status::kModelBadTable;
  const size_t count = static_cast<size_t>(num_regular) + 1;
  table->offset = offset;
  table->num_regular = num_regular;
  table->num_narrow = std::min(num_regular, std::max(0, kMaxSymbol + 1 - offset));
  table->count = num_regular + 1;
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
  if (table->cdf[count] != kCdfTotal) return Status::kModelBadTableSum;
  const uint32_t largest = table->Frequency(table->most_probable);
  const bool has_likely = largest > kCdfTotal / 3;
  table->likely = has_likely ? table->most_probable : -1;
  table->likely_start = has_likely ? table->cdf[static_cast<size_t>(table->most_probable)] : 0;
  table->likely_frequency = has_likely ? largest : 0;
  table->shifts = largest > kCdfTotal / 4 * 3 ? kSeldomShifts : kOftenShifts;
  table->first.resize(256);
  size_t i = 0;
  for (size_t slot = 0; slot < 256; ++slot) {
    while (table->cdf[i + 1] <= 256 * slot) ++i;
    table->first[slot] = static_cast<uint16_t>(i);
  }
  return Status::kOk;
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
                  table.Frequency(table.num_regular), kOftenShifts);
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

namespace {

bool Has16Bits(int32_t value) { return value >= kMinSymbol && value <= kMaxSymbol; }

}  // namespace

Status EncodeValues(const std::vector<CdfTable>& tables, const uint16_t* indexes,
                    const int32_t* values, size_t count, RangeEncoder* encoder) {
  const CdfTable* of_index = tables.data();
  const size_t num_tables = tables.size();
  RangeEncoder::State state = encoder->Open();
  Status status = Status::kOk;
  for (size_t i = 0; i < count; ++i) {
    if (indexes[i] >= num_tables) {
      status = Status::kBadTableIndex;
      break;
    }
    const CdfTable& table = of_index[indexes[i]];
    const uint32_t index = static_cast<uint32_t>(values[i]) - static_cast<uint32_t>(table.offset);
    if (index < static_cast<uint32_t>(table.num_narrow)) {
      const uint32_t* at = table.cdf.data() + index;
      state = encoder->Narrow(state, at[0], at[1] - at[0], table.shifts);
      continue;
    }
    if (!Has16Bits(values[i])) {
      status = Status::kSymbolOutOfRange;
      break;
    }
    encoder->Close(state);
    EncodeEscaped(table, values[i], encoder);
    state = encoder->Open();
  }
  encoder->Close(state);
  return status;
}

Status DecodeValues(const std::vector<CdfTable>& tables, const uint16_t* indexes, size_t count,
                    RangeDecoder* decoder, int32_t* values) {
  const CdfTable* of_index = tables.data();
  const size_t num_tables = tables.size();
  RangeDecoder::State state = decoder->Open();
  Status status = Status::kOk;
  for (size_t i = 0; i < count && status == Status::kOk; ++i) {
    if (indexes[i] >= num_tables) {
      status = Status::kBadTableIndex;
      break;
    }
    int32_t value = 0;
    status = DecodeNext(of_index[indexes[i]], decoder, &state, &value);
    if (status == Status::kOk && !Has16Bits(value)) status = Status::kStreamSymbolOutOfRange;
    values[i] = value;
  }
  decoder->Close(state);
  return status;
}

}  // namespace fasdiff
