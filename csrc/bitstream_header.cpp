#include "bitstream_header.h"

namespace fasdiff {
namespace {

constexpr int kMagic = 0xFA;
constexpr int kMaxQuality = 252;
constexpr int kShortCheck = 1, kSquare = 2;
constexpr int kSquareUnit = 16;

uint32_t BigEndian(const uint8_t* bytes, size_t size) {
  uint32_t value = 0;
  for (size_t i = 0; i < size; ++i) value = value << 8 | bytes[i];
  return value;
}

}  // namespace

uint32_t Crc32(const uint8_t* data, size_t size, uint32_t crc) {
  crc = ~crc;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320u : 0u);
  }
  return ~crc;
}

uint16_t Crc16(const uint8_t* data, size_t size, uint16_t crc) {
  uint32_t value = crc;
  for (size_t i = 0; i < size; ++i) {
    value ^= uint32_t{data[i]} << 8;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value << 1 ^ ((value & 0x8000) != 0 ? 0x1021u : 0u)) & 0xFFFF;
    }
  }
  return static_cast<uint16_t>(value);
}

Status ParseFileHeader(const uint8_t* file, size_t size, FileHeader* header) {
  if (size < 1) return Status::kHeaderTooShort;
  if (file[0] != kMagic) return Status::kHeaderBadMagic;
  if (size < 2) return Status::kHeaderTooShort;
  // The version decides what everything after it means.
  header->version = file[1] >> 4;
  if (header->version < kOldestFormatVersion || header->version > kFormatVersion) {
    return Status::kHeaderBadVersion;
  }
  const int flags = file[1] & 3;
  if (header->version == 1 && flags != 0) return Status::kHeaderReservedBits;
  const bool square = (flags & kSquare) != 0;
  const size_t check_size = (flags & kShortCheck) != 0 ? 2 : 4;
  const size_t quality_at = square ? 5 : 7;
  const size_t check_at = quality_at + 1;
  header->bytes = check_at + check_size;
  if (size < header->bytes) return Status::kHeaderTooShort;
  header->scale = (file[1] >> 2) & 3;
  header->model_id = static_cast<int>(BigEndian(file + 2, 2));
  if (square) {
    header->width = header->height = (file[4] + 1) * kSquareUnit;
  } else {
    const int sides = static_cast<int>(BigEndian(file + 4, 3));
    header->width = (sides >> 12) + 1;
    header->height = (sides & 0xFFF) + 1;
  }
  header->quality = file[quality_at];
  const uint8_t* payload = file + header->bytes;
  const size_t payload_size = size - header->bytes;
  const uint32_t check = check_size == 2
                             ? Crc16(payload, payload_size, Crc16(file, check_at, 0xFFFF))
                             : Crc32(payload, payload_size, Crc32(file, check_at, 0));
  if (check != BigEndian(file + check_at, check_size)) return Status::kHeaderBadChecksum;
  if (header->quality > kMaxQuality) return Status::kHeaderBadQuality;
  if (header->coded_width() * header->coded_height() > kMaxCodedPixels) {
    return Status::kHeaderTooManyPixels;
  }
  return Status::kOk;
}

}  // namespace fasdiff
