// Python bindings: check dtype, shape and contiguity, release the GIL, turn a status into an error.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings_kernels.h"
#include "bitstream_header.h"
#include "cdf_table.h"
#include "entropy_coder.h"
#include "entropy_model.h"
#include "frequency_split.h"
#include "noise.h"
#include "part_bits.h"
#include "range_coder.h"

namespace py = pybind11;

namespace fasdiff {
namespace {

class StreamError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

void Check(Status status) {
  if (status == Status::kOk) return;
  if (IsStreamError(status)) throw StreamError(StatusMessage(status));
  throw py::value_error(StatusMessage(status));
}

std::string ShapeText(const std::vector<py::ssize_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += shape[i] < 0 ? "*" : std::to_string(shape[i]);
  }
  return text + "]";
}

// Refuses anything but an aligned C-contiguous array of T with this shape; -1 is any size.
template <typename T>
const T* Data(const py::array& array, const char* name, const std::vector<py::ssize_t>& shape) {
  std::vector<py::ssize_t> actual(array.shape(), array.shape() + array.ndim());
  bool fits = actual.size() == shape.size() && py::isinstance<py::array_t<T>>(array) &&
              (array.flags() & py::array::c_style) != 0;
  const bool aligned = (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || shape[i] == actual[i];
  if (!fits || !aligned) {
    throw py::value_error(std::string(name) + " must be a C-contiguous " +
                          py::str(py::dtype::of<T>()).cast<std::string>() + " array " +
                          ShapeText(shape) + ", got " + (aligned ? "" : "unaligned ") +
                          py::str(array.dtype()).cast<std::string>() + " " + ShapeText(actual));
  }
  return static_cast<const T*>(array.data());
}

int Side(py::ssize_t side) {
  if (side > kMaxImageSide) Check(Status::kImageTooLarge);
  return static_cast<int>(side);
}

// `out` if it is not None, checked; otherwise a new array that starts with a cache line, as no
// allocator of numpy's promises: unaligned, the frequency split takes longer.
template <typename T>
py::array_t<T> Output(const py::object& out, const std::vector<py::ssize_t>& shape) {
  if (!out.is_none()) {
    if (!py::isinstance<py::array>(out)) throw py::value_error("out must be an array");
    py::array array = py::reinterpret_borrow<py::array>(out);
    Data<T>(array, "out", shape);
    if (!array.writeable()) throw py::value_error("out is read-only");
    return py::reinterpret_borrow<py::array_t<T>>(array);
  }
  constexpr size_t kLine = 64;
  size_t bytes = sizeof(T);
  for (const py::ssize_t side : shape) bytes *= static_cast<size_t>(side);
  void* memory = ::operator new(bytes, std::align_val_t(kLine), std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  py::capsule owner(memory, [](void* p) { ::operator delete(p, std::align_val_t(kLine)); });
  return py::array_t<T>(shape, static_cast<T*>(memory), owner);
}

py::array_t<float> SplitBandsPy(const py::array& image, const py::object& to) {
  const uint8_t* data = Data<uint8_t>(image, "image", {-1, -1, 3});
  const int height = Side(image.shape(0)), width = Side(image.shape(1));
  if (height < 1 || width < 1) Check(Status::kEmptyImage);
  py::array_t<float> bands = Output<float>(to, {kNumBands, BandSide(height), BandSide(width)});
  float* out = bands.mutable_data();
  Status status;
  {
    py::gil_scoped_release release;
    status = SplitBands(data, height, width, out);
  }
  Check(status);
  return bands;
}

// Refuses anything but aligned float32 bands [48, h, w], each of them C-contiguous; *plane is how
// many floats there are from one to the next.
const float* Bands(const py::array& bands, ptrdiff_t* plane) {
  constexpr py::ssize_t kSize = sizeof(float);
  const bool apart = bands.ndim() == 3 && py::isinstance<py::array_t<float>>(bands) &&
                     bands.strides(2) == kSize && bands.strides(1) == kSize * bands.shape(2) &&
                     bands.strides(0) >= bands.strides(1) * bands.shape(1) &&
                     bands.strides(0) % kSize == 0 && bands.shape(0) == kNumBands &&
                     (bands.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
  if (!apart) Data<float>(bands, "bands", {kNumBands, -1, -1});  // Says what is wrong, if it is.
  *plane = apart ? bands.strides(0) / kSize : bands.shape(1) * bands.shape(2);
  return static_cast<const float*>(bands.data());
}

py::array_t<uint8_t> MergeBandsPy(const py::array& bands, int height, int width,
                                  const py::object& to) {
  ptrdiff_t plane = 0;
  const float* data = Bands(bands, &plane);
  const int band_height = Side(bands.shape(1)), band_width = Side(bands.shape(2));
  if (height < 1 || width < 1) Check(Status::kEmptyImage);
  if (height > kMaxImageSide || width > kMaxImageSide) Check(Status::kImageTooLarge);
  if (band_height != BandSide(height) || band_width != BandSide(width)) {
    Check(Status::kBadBandShape);
  }
  py::array_t<uint8_t> image = Output<uint8_t>(to, {height, width, 3});
  uint8_t* out = image.mutable_data();
  Status status;
  {
    py::gil_scoped_release release;
    status = MergeBands(data, plane, band_height, band_width, height, width, out);
  }
  Check(status);
  return image;
}

py::array_t<float> NoisePy(int64_t seed, py::ssize_t count) {
  if (seed < 0 || seed > UINT32_MAX) {
    throw py::value_error("seed must be in 0..2^32 - 1, got " + std::to_string(seed));
  }
  if (count < 0) throw py::value_error("count must not be negative, got " + std::to_string(count));
  py::array_t<float> out(count);
  float* data = out.mutable_data();
  py::gil_scoped_release release;
  Noise(static_cast<uint32_t>(seed), static_cast<size_t>(count), data);
  return out;
}

py::bytes ToBytes(const std::vector<uint8_t>& data) {
  return py::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

struct BytesView {
  explicit BytesView(const py::bytes& bytes) {
    char* start = nullptr;
    py::ssize_t length = 0;
    if (PyBytes_AsStringAndSize(bytes.ptr(), &start, &length) != 0) throw py::error_already_set();
    data = reinterpret_cast<const uint8_t*>(start);
    size = static_cast<size_t>(length);
  }
  const uint8_t* data;
  size_t size;
};

std::unique_ptr<EntropyModel> ParseModelPy(const py::bytes& bytes) {
  const BytesView view(bytes);
  auto model = std::make_unique<EntropyModel>();
  Status status;
  {
    py::gil_scoped_release release;
    status = ParseEntropyModel(view.data, view.size, model.get());
  }
  Check(status);
  return model;
}

py::bytes RangeEncodePy(const py::array& symbols, const py::array& table_indexes,
                        const EntropyModel& model) {
  const int32_t* values = Data<int32_t>(symbols, "symbols", {-1});
  const uint16_t* indexes = Data<uint16_t>(table_indexes, "table_indexes", {symbols.shape(0)});
  const size_t count = static_cast<size_t>(symbols.shape(0));
  std::vector<uint8_t> payload;
  Status status;
  {
    py::gil_scoped_release release;
    RangeEncoder encoder;
    status = EncodeValues(model.tables, indexes, values, count, &encoder);
    if (status == Status::kOk) encoder.Finish(&payload);
  }
  Check(status);
  return ToBytes(payload);
}

py::array_t<int32_t> RangeDecodePy(const py::bytes& payload, const py::array& table_indexes,
                                   const EntropyModel& model) {
  const BytesView view(payload);
  const uint16_t* indexes = Data<uint16_t>(table_indexes, "table_indexes", {-1});
  py::array_t<int32_t> symbols(table_indexes.shape(0));
  int32_t* out = symbols.mutable_data();
  const size_t count = static_cast<size_t>(table_indexes.shape(0));
  Status status;
  {
    py::gil_scoped_release release;
    RangeDecoder decoder(view.data, view.size, false);
    status = DecodeValues(model.tables, indexes, count, &decoder, out);
    if (status == Status::kOk) status = decoder.Finish();
  }
  Check(status);
  return symbols;
}

LatentSize CheckedSize(py::ssize_t hy, py::ssize_t wy) {
  LatentSize size;
  if (hy < 1 || hy > kMaxLatentSide || wy < 1 || wy > kMaxLatentSide) {
    Check(Status::kBadLatentShape);
  }
  size.hy = static_cast<int>(hy);
  size.wy = static_cast<int>(wy);
  return size;
}

LatentSize SizeOf(const EntropyModel& model, const py::array& y) {
  Data<int32_t>(y, "y", {model.num_y, -1, -1});
  return CheckedSize(y.shape(1), y.shape(2));
}

LatentsView View(const EntropyModel& model, const py::array& s, const py::array& z,
                 const py::array& y, LatentSize size) {
  return {Data<int32_t>(s, "s", {model.num_s}),
          Data<int32_t>(z, "z", {model.num_z, size.hz(), size.wz()}),
          Data<int32_t>(y, "y", {model.num_y, size.hy, size.wy})};
}

py::bytes EncodePy(const EntropyModel& model, const py::array& s, const py::array& z,
                   const py::array& y, int q) {
  const LatentSize size = SizeOf(model, y);
  const LatentsView latents = View(model, s, z, y, size);
  std::vector<uint8_t> payload;
  Status status;
  {
    py::gil_scoped_release release;
    status = EncodeLatents(model, latents, size, q, &payload);
  }
  Check(status);
  return ToBytes(payload);
}

std::tuple<py::array_t<int32_t>, py::array_t<int32_t>, py::array_t<int32_t>> DecodePy(
    const EntropyModel& model, const py::bytes& payload, int q, py::ssize_t hy, py::ssize_t wy,
    bool truncated_ok) {
  const BytesView view(payload);
  const LatentSize size = CheckedSize(hy, wy);
  py::array_t<int32_t> s(model.num_s);
  py::array_t<int32_t> z({model.num_z, size.hz(), size.wz()});
  py::array_t<int32_t> y({model.num_y, size.hy, size.wy});
  int32_t *s_out = s.mutable_data(), *z_out = z.mutable_data(), *y_out = y.mutable_data();
  Status status;
  {
    py::gil_scoped_release release;
    status = DecodeLatents(model, view.data, view.size, size, q, truncated_ok, s_out, z_out, y_out);
  }
  Check(status);
  return {std::move(s), std::move(z), std::move(y)};
}

std::unique_ptr<CodedBase> CodeBasePy(const EntropyModel& model, const py::array& s,
                                      const py::array& z, const py::array& y) {
  const LatentSize size = SizeOf(model, y);
  const LatentsView latents = View(model, s, z, y, size);
  auto base = std::make_unique<CodedBase>();
  Status status;
  {
    py::gil_scoped_release release;
    status = base->Code(model, latents, size);
  }
  Check(status);
  return base;
}

py::array_t<int32_t> Array(const std::vector<int32_t>& values,
                           const std::vector<py::ssize_t>& shape) {
  return py::array_t<int32_t>(shape, values.data());
}

std::tuple<py::array_t<int32_t>, py::array_t<int32_t>, py::array_t<int32_t>> LevelsPy(
    const CodedBase& base) {
  const LatentSize size = base.size();
  const auto channels = [](const std::vector<int32_t>& values, size_t plane) {
    return static_cast<py::ssize_t>(values.size() / plane);
  };
  return {Array(base.s(), {channels(base.s(), 1)}),
          Array(base.z(), {channels(base.z(), size.z_plane()), size.hz(), size.wz()}),
          Array(base.y(), {channels(base.y(), size.y_plane()), size.hy, size.wy})};
}

py::bytes EncodeResidualPy(const CodedBase& base, const py::array& residual, int q,
                           const std::optional<py::array>& prices) {
  const LatentSize size = base.size();
  const int32_t* levels =
      Data<int32_t>(residual, "residual", {base.num_residual(), size.hy, size.wy});
  const int32_t* of_position =
      prices ? Data<int32_t>(*prices, "prices", {size.hy, size.wy}) : nullptr;
  std::vector<uint8_t> payload;
  Status status;
  {
    py::gil_scoped_release release;
    status = base.Encode(levels, of_position, q, &payload);
  }
  Check(status);
  return ToBytes(payload);
}

py::array_t<double> PartBitsPy(const EntropyModel& model, const py::array& s, const py::array& z,
                               const py::array& y, int q) {
  const LatentSize size = SizeOf(model, y);
  const LatentsView latents = View(model, s, z, y, size);
  py::array_t<double> bits(2 + model.num_passes());
  double* out = bits.mutable_data();
  Status status;
  {
    py::gil_scoped_release release;
    status = PartBits(model, latents, size, q, out);
  }
  Check(status);
  return bits;
}

std::tuple<py::array_t<int32_t>, py::array_t<uint16_t>> IndexesPy(const EntropyModel& model,
                                                                  const py::array& s,
                                                                  const py::array& z,
                                                                  const py::array& y, int q,
                                                                  bool with_residual) {
  const LatentSize size = SizeOf(model, y);
  const LatentsView latents = View(model, s, z, y, size);
  py::array_t<int32_t> base({model.num_y, size.hy, size.wy});
  py::array_t<uint16_t> table({model.num_y, size.hy, size.wy});
  int32_t* base_out = base.mutable_data();
  uint16_t* table_out = table.mutable_data();
  Status status;
  {
    py::gil_scoped_release release;
    status = PredictIndexes(model, latents, size, q, with_residual, base_out, table_out);
  }
  Check(status);
  return {std::move(base), std::move(table)};
}

// Steps [num_q, channels] of a latent; all 4096, one unit a symbol, where the model has no
// quantiser.
py::array_t<int32_t> StepTable(const EntropyModel& model, const Quantiser& quantiser,
                               int channels) {
  py::array_t<int32_t> out({model.num_q, channels});
  int32_t* to = out.mutable_data();
  if (quantiser.step.empty()) {
    std::fill(to, to + out.size(), 1 << 12);
  } else {
    std::copy(quantiser.step.begin(), quantiser.step.end(), to);
  }
  return out;
}

std::tuple<int, int, int, int, int, int> ParseHeaderPy(const py::bytes& file) {
  const BytesView view(file);
  FileHeader header;
  Check(ParseFileHeader(view.data, view.size, &header));
  return {header.version, header.scale,  header.model_id,
          header.width,   header.height, header.quality};
}

}  // namespace
}  // namespace fasdiff

PYBIND11_MODULE(_core, m) {
  using namespace fasdiff;
  m.doc() = "The FaSDiff-Edge C++ core: frequency split, noise, integer entropy coding.";

  py::register_exception<StreamError>(m, "StreamError", PyExc_ValueError);

  m.def("split_bands", &SplitBandsPy, py::arg("image"), py::arg("out") = py::none());
  m.def("merge_bands", &MergeBandsPy, py::arg("bands"), py::arg("height"), py::arg("width"),
        py::arg("out") = py::none());
  m.def("noise", &NoisePy, py::arg("seed"), py::arg("count"));
  m.def("parse_header", &ParseHeaderPy, py::arg("data"));

  py::class_<EntropyModel>(m, "EntropyModel")
      .def(py::init(&ParseModelPy), py::arg("data"))
      .def_readonly("num_s", &EntropyModel::num_s)
      .def_readonly("num_z", &EntropyModel::num_z)
      .def_readonly("num_y", &EntropyModel::num_y)
      .def_readonly("num_q", &EntropyModel::num_q)
      .def_readonly("num_groups", &EntropyModel::num_groups)
      .def_property_readonly("num_passes", &EntropyModel::num_passes)
      .def_readonly("num_scales", &EntropyModel::num_scales)
      .def_property_readonly("num_tables", [](const EntropyModel& e) { return e.tables.size(); })
      .def_property_readonly("group_sizes",
                             [](const EntropyModel& e) {
                               return std::vector<int>(e.group_size, e.group_size + e.num_groups);
                             })
      .def_property_readonly("group_scans",
                             [](const EntropyModel& e) {
                               return std::vector<int>(e.group_scan, e.group_scan + e.num_groups);
                             })
      .def_property_readonly("group_starts",
                             [](const EntropyModel& e) {
                               return std::vector<int>(e.group_start, e.group_start + e.num_groups);
                             })
      .def_property_readonly("num_base", [](const EntropyModel& e) { return e.num_base(); })
      .def_property_readonly("residual_from",
                             [](const EntropyModel& e) -> py::object {
                               if (e.residual_from == kNoResidual) return py::none();
                               return py::int_(e.residual_from);
                             })
      .def_readonly("version", &EntropyModel::version)
      .def_property_readonly("unit_bits", &EntropyModel::unit_bits)
      .def_property_readonly("s_step",
                             [](const EntropyModel& e) { return StepTable(e, e.s, e.num_s); })
      .def_property_readonly("z_step",
                             [](const EntropyModel& e) { return StepTable(e, e.z, e.num_z); })
      .def_property_readonly("y_step",
                             [](const EntropyModel& e) { return StepTable(e, e.y, e.num_y); })
      .def("code_base", &CodeBasePy, py::arg("s"), py::arg("z"), py::arg("y"),
           py::keep_alive<0, 1>())
      .def("encode", &EncodePy, py::arg("s"), py::arg("z"), py::arg("y"), py::arg("q"))
      .def("decode", &DecodePy, py::arg("payload"), py::arg("q"), py::arg("hy"), py::arg("wy"),
           py::arg("truncated_ok") = false)
      .def("part_bits", &PartBitsPy, py::arg("s"), py::arg("z"), py::arg("y"), py::arg("q"))
      .def("indexes", &IndexesPy, py::arg("s"), py::arg("z"), py::arg("y"), py::arg("q"),
           py::arg("with_residual") = true);

  py::class_<CodedBase>(m, "CodedBase")
      .def_property_readonly("levels", &LevelsPy)
      .def("encode", &EncodeResidualPy, py::arg("residual"), py::arg("q"),
           py::arg("prices") = py::none());

  m.def("range_encode", &RangeEncodePy, py::arg("symbols"), py::arg("table_indexes"),
        py::arg("model"));
  m.def("range_decode", &RangeDecodePy, py::arg("payload"), py::arg("table_indexes"),
        py::arg("model"));

  BindKernels(m);
}
