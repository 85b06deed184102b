// Makes files out of headers and payloads, for the tests that damage them.
#ifndef FASDIFF_TESTS_CPP_FILES_H_
#define FASDIFF_TESTS_CPP_FILES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bitstream_header.h"

namespace fasdiff {
namespace testing {

// What a header has besides its check. Fields may be out of range.
struct HeaderFields {
  int version = kFormatVersion;
  int scale = 0;
  bool square = false, short_check = false;
  int model_id = 0;
  int width = 1, height = 1;
  int quality = 0;
};

inline HeaderFields FieldsOf(const FileHeader& header, uint8_t flags) {
  HeaderFields fields;
  fields.version = header.version;
  fields.scale = header.scale;
  fields.square = (flags & 2) != 0;
  fields.short_check = (flags & 1) != 0;
  fields.model_id = header.model_id;
  fields.width = header.width;
  fields.height = header.height;
  fields.quality = header.quality;
  return fields;
}

// The file, with a check that fits.
inline std::vector<uint8_t> MakeFile(const HeaderFields& f, const std::vector<uint8_t>& payload) {
  std::vector<uint8_t> file;
  const auto put = [&file](int value, int bytes) {
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) {
      file.push_back(static_cast<uint8_t>(static_cast<uint32_t>(value) >> shift));
    }
  };
  put(0xFA, 1);
  put(f.version << 4 | f.scale << 2 | (f.square ? 2 : 0) | (f.short_check ? 1 : 0), 1);
  put(f.model_id, 2);
  if (f.square) {
    put(f.width / 16 - 1, 1);
  } else {
    put((f.width - 1) << 12 | (f.height - 1), 3);
  }
  put(f.quality, 1);
  if (f.short_check) {
    const uint16_t front = Crc16(file.data(), file.size(), 0xFFFF);
    put(Crc16(payload.data(), payload.size(), front), 2);
  } else {
    const uint32_t front = Crc32(file.data(), file.size(), 0);
    put(static_cast<int>(Crc32(payload.data(), payload.size(), front)), 4);
  }
  file.insert(file.end(), payload.begin(), payload.end());
  return file;
}

}  // namespace testing
}  // namespace fasdiff

#endif  // FASDIFF_TESTS_CPP_FILES_H_
