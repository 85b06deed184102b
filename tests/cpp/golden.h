// Reads tests/vectors/v<N>: the frozen entropy model, the streams and what index.json says of them.
#ifndef FASDIFF_TESTS_CPP_GOLDEN_H_
#define FASDIFF_TESTS_CPP_GOLDEN_H_

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace fasdiff {
namespace testing {

using Bytes = std::vector<uint8_t>;

// The contents of a file; empty if it cannot be read.
inline Bytes ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

struct GoldenStream {
  std::string name;
  std::string symbols_sha256;  // Lower-case hexadecimal.
  Bytes file;
};

struct Golden {
  Bytes model;
  std::vector<GoldenStream> streams;
};

// The string value of the next "key": "value" at or after *at, which moves past it.
inline std::string NextString(const std::string& json, const std::string& key, size_t* at) {
  const std::string opening = "\"" + key + "\": \"";
  const size_t found = json.find(opening, *at);
  if (found == std::string::npos) return "";
  const size_t start = found + opening.size();
  const size_t end = json.find('"', start);
  if (end == std::string::npos) return "";
  *at = end;
  return json.substr(start, end - start);
}

// Relies on the layout that make_vectors.py writes: "file" before "symbols_sha256" in each stream.
inline Golden LoadGolden(const std::string& directory) {
  const Bytes index = ReadFile(directory + "/index.json");
  const std::string json(index.begin(), index.end());
  Golden golden;
  size_t at = 0;
  golden.model = ReadFile(directory + "/" + NextString(json, "entropy_model", &at));
  while (true) {
    GoldenStream stream;
    stream.name = NextString(json, "file", &at);
    if (stream.name.empty()) break;
    stream.symbols_sha256 = NextString(json, "symbols_sha256", &at);
    stream.file = ReadFile(directory + "/" + stream.name);
    golden.streams.push_back(stream);
  }
  return golden;
}

// Calls check(golden) for the directories that the arguments from `first` on name; without any,
// prints how to call the program and is false.
template <typename Check>
bool ForEachGolden(int argc, char** argv, int first, const char* arguments, const Check& check) {
  if (argc <= first) {
    std::fprintf(stderr, "usage: %s %s\n", argv[0], arguments);
    return false;
  }
  for (int i = first; i < argc; ++i) check(LoadGolden(argv[i]));
  return true;
}

}  // namespace testing
}  // namespace fasdiff

#endif  // FASDIFF_TESTS_CPP_GOLDEN_H_
