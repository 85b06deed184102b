// Python bindings that tests and benchmarks of the kernels need, and what was chosen for this CPU.
#include "bindings_kernels.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu_dispatch.h"
#include "entropy_model.h"
#include "frequency_split.h"
#include "integer_net.h"

namespace py = pybind11;

namespace fasdiff {
namespace {

using Int8Array = py::array_t<int8_t, py::array::c_style>;
using Int16Array = py::array_t<int16_t, py::array::c_style>;
using Int32Array = py::array_t<int32_t, py::array::c_style>;
using LayerTuple = std::tuple<Int8Array, Int32Array, int, int, int>;

void Check(Status status) {
  if (status != Status::kOk) throw py::value_error(StatusMessage(status));
}

py::dict CpuInfoPy() {
  CpuPath path;
  const bool valid = ChosenCpuPath(&path) == Status::kOk;
  py::list available;
  for (const CpuPath each : AvailableCpuPaths()) available.append(CpuPathName(each));
  py::dict info;
  info["available"] = available;
  info["environment"] = CpuEnvironment();
  info["chosen"] = py::none();
  info["problem"] = py::none();
  py::dict kernels;
  if (valid) {
    info["chosen"] = CpuPathName(path);
    kernels["frequency_split"] = FrequencyUnitName(path);
    kernels["integer_net"] = CpuPathName(path);
    kernels["range_coder"] = CpuPathName(CpuPath::kScalar);
  } else {
    info["problem"] = "FASDIFF_CPU is '" + CpuEnvironment() + "'; this build and machine have " +
                      AvailableCpuPathNames();
  }
  info["kernels"] = kernels;
  return info;
}

void SetCpuPathPy(const std::string& name) {
  for (const CpuPath path : AvailableCpuPaths()) {
    if (name == CpuPathName(path)) return Check(SetCpuPath(path));
  }
  throw py::value_error("no CPU path '" + name + "'; this build and machine have " +
                        AvailableCpuPathNames());
}

struct BoundedNet {
  IntegerNet net;
  int max_input;
};

std::unique_ptr<BoundedNet> MakeNetPy(const std::vector<LayerTuple>& layers, int max_input) {
  auto bounded = std::make_unique<BoundedNet>();
  bounded->max_input = max_input;
  if (layers.empty()) throw py::value_error("layers must not be empty");
  for (const LayerTuple& tuple : layers) {
    const Int8Array& weight = std::get<0>(tuple);
    const Int32Array& bias = std::get<1>(tuple);
    if (weight.ndim() != 4 || weight.shape(2) != weight.shape(3) || bias.ndim() != 1 ||
        bias.shape(0) != weight.shape(0) || weight.shape(0) > kMaxChannels ||
        weight.shape(1) > 2 * kMaxChannels || weight.shape(2) > 3) {
      throw py::value_error("a layer must be int8 [cout, cin, k, k] and int32 [cout]");
    }
    ConvLayer layer;
    Check(layer.Init(static_cast<int>(weight.shape(1)), static_cast<int>(weight.shape(0)),
                     static_cast<int>(weight.shape(2)), std::get<2>(tuple), std::get<3>(tuple),
                     std::get<4>(tuple), weight.data(), bias.data()));
    Check(bounded->net.Append(std::move(layer)));
  }
  Check(bounded->net.CheckAccumulators(max_input));
  return bounded;
}

Lattice LatticeNamed(const std::string& positions) {
  const std::pair<const char*, Lattice> names[] = {{"all", Lattice::kAll},
                                                   {"even", Lattice::kEven},
                                                   {"odd", Lattice::kOdd},
                                                   {"even_even", Lattice::kEvenEven},
                                                   {"odd_odd", Lattice::kOddOdd}};
  for (const auto& name : names) {
    if (positions == name.first) return name.second;
  }
  throw py::value_error("positions must be all, even, odd, even_even or odd_odd, got '" +
                        positions + "'");
}

Int16Array RunNetPy(const BoundedNet& bounded, const Int16Array& x, const std::string& positions) {
  const IntegerNet& net = bounded.net;
  const Lattice lattice = LatticeNamed(positions);
  if (x.ndim() != 3 || x.shape(0) < 1 || x.shape(1) < 1 || x.shape(2) % 8 != 0 ||
      x.shape(0) > kMaxImageSide || x.shape(1) > kMaxImageSide || x.shape(2) > 4 * kMaxChannels ||
      x.shape(2) < PadChannels(net.cin())) {
    throw py::value_error("x must be int16 [height, width, channels], the channels " +
                          std::to_string(net.cin()) + " or more and a multiple of 8");
  }
  const int height = static_cast<int>(x.shape(0)), width = static_cast<int>(x.shape(1));
  const int16_t* data = x.data();
  const size_t count = static_cast<size_t>(x.size());
  int16_t lowest = 0, highest = 0;
  for (size_t i = 0; i < count; ++i) {
    lowest = std::min(lowest, data[i]);
    highest = std::max(highest, data[i]);
  }
  if (-int{lowest} > bounded.max_input || highest > bounded.max_input) {
    throw py::value_error("x is beyond the max_input of the network");
  }
  Int16Array out({height, width, net.cout()});
  int16_t* to = out.mutable_data();
  {
    py::gil_scoped_release release;
    if (lattice != Lattice::kAll) std::fill(to, to + out.size(), int16_t{0});
    IntegerNet::Scratch scratch;
    net.Run(data, static_cast<int>(x.shape(2)), height, width, lattice, to, net.cout(), &scratch);
  }
  return out;
}

std::tuple<int, py::array_t<uint32_t>> CdfTablePy(const EntropyModel& model, size_t index) {
  if (index >= model.tables.size()) Check(Status::kBadTableIndex);
  const CdfTable& table = model.tables[index];
  const py::ssize_t size = table.num_regular + 2;
  py::array_t<uint32_t> cdf(size);
  std::copy(table.cdf.begin(), table.cdf.begin() + size, cdf.mutable_data());
  return {table.offset, std::move(cdf)};
}

}  // namespace

void BindKernels(py::module_& m) {
  m.def("cpu_info", &CpuInfoPy);
  m.def("set_cpu_path", &SetCpuPathPy, py::arg("name"));
  m.def("cdf_table", &CdfTablePy, py::arg("model"), py::arg("index"));
  py::class_<BoundedNet>(m, "IntegerNet")
      .def(py::init(&MakeNetPy), py::arg("layers"), py::arg("max_input"))
      .def("run", &RunNetPy, py::arg("x"), py::arg("positions") = "all");
}

}  // namespace fasdiff
