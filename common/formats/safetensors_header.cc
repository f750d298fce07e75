#include "common/formats/safetensors_header.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace qlora {
namespace {

struct DtypeRow {
  TensorDtype dtype;
  std::string_view name;
  int64_t size;
};

constexpr std::array<DtypeRow, 13> kDtypes = {{
    {TensorDtype::kBool, "BOOL", 1},
    {TensorDtype::kU8, "U8", 1},
    {TensorDtype::kI8, "I8", 1},
    {TensorDtype::kI16, "I16", 2},
    {TensorDtype::kU16, "U16", 2},
    {TensorDtype::kF16, "F16", 2},
    {TensorDtype::kBF16, "BF16", 2},
    {TensorDtype::kI32, "I32", 4},
    {TensorDtype::kU32, "U32", 4},
    {TensorDtype::kF32, "F32", 4},
    {TensorDtype::kF64, "F64", 8},
    {TensorDtype::kI64, "I64", 8},
    {TensorDtype::kU64, "U64", 8},
}};

const DtypeRow& Row(TensorDtype dtype) {
  return kDtypes[static_cast<size_t>(dtype)];
}

}  // namespace

int64_t DtypeSize(TensorDtype dtype) { return Row(dtype).size; }
std::string_view DtypeName(TensorDtype dtype) { return Row(dtype).name; }

int64_t TensorInfo::num_elements() const {
  return size_bytes / DtypeSize(dtype);
}

namespace formats_internal {
namespace {

using Json = nlohmann::json;

std::optional<TensorDtype> DtypeByName(std::string_view name) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

// Accepts exactly the header's grammar and stops at the first byte that is
// outside it, so a hostile header costs no more memory than its tensors.
class HeaderHandler final : public nlohmann::json_sax<Json> {
 public:
  Header header;
  std::string error;

  bool null() override {
    // mlx writes "__metadata__": null.
    if (state_ == State::kTop && key_ == "__metadata__") return true;
    return Fail("null");
  }
  bool boolean(bool) override { return Fail("a boolean"); }
  bool number_integer(number_integer_t) override {
    return Fail("a negative number");
  }
  bool number_unsigned(number_unsigned_t value) override;
  bool number_float(number_float_t, const string_t&) override {
    return Fail("a number that is no integer");
  }
  bool string(string_t& value) override;
  bool binary(binary_t&) override { return Fail("binary data"); }
  bool start_object(std::size_t) override;
  bool key(string_t& key) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool parse_error(std::size_t position, const std::string&,
                   const Json::exception&) override {
    error = absl::StrCat("the header is not JSON at byte ", position);
    return false;
  }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets };

  bool Fail(std::string_view found) {
    const std::string at =
        name_.empty() ? "" : absl::StrCat(" in ", Quoted(name_));
    error = absl::StrCat("the header has ", std::string(found), " where ",
                         Expected(), " is expected", at);
    return false;
  }
  bool FailWith(const std::string& message) {
    error = absl::StrCat(Quoted(name_), ": ", message);
    return false;
  }
  const char* Expected() const;

  State state_ = State::kStart;
  std::string key_;
  std::string name_;
  HeaderTensor tensor_;
  bool has_dtype_ = false, has_shape_ = false;
  int offsets_ = 0;
  std::unordered_set<std::string> names_;
};

const char* HeaderHandler::Expected() const {
  switch (state_) {
    case State::kStart:
      return "an object";
    case State::kTop:
      return "a tensor's description";
    case State::kMetadata:
      return "a string";
    case State::kTensor:
      return "dtype, shape or data_offsets";
    case State::kShape:
    case State::kOffsets:
      return "a non-negative integer";
  }
  return "";
}

bool HeaderHandler::number_unsigned(number_unsigned_t value) {
  if (state_ != State::kShape && state_ != State::kOffsets) {
    return Fail("a number");
  }
  if (value > std::numeric_limits<int64_t>::max()) {
    return FailWith("a size or offset does not fit 63 bits");
  }
  const auto number = static_cast<int64_t>(value);
  if (state_ == State::kShape) {
    if (tensor_.info.shape.size() >= kMaxRank) {
      return FailWith(absl::StrCat("more than ", kMaxRank, " dimensions"));
    }
    tensor_.info.shape.push_back(number);
    return true;
  }
  if (offsets_ >= 2) return FailWith("data_offsets has more than two numbers");
  (offsets_ == 0 ? tensor_.begin : tensor_.end) = number;
  ++offsets_;
  return true;
}

bool HeaderHandler::string(string_t& value) {
  if (state_ == State::kMetadata) {
    header.metadata[key_] = value;
    return true;
  }
  if (state_ != State::kTensor || key_ != "dtype") return Fail("a string");
  const std::optional<TensorDtype> dtype = DtypeByName(value);
  if (!dtype.has_value()) {
    const auto name = [](std::string* out, const DtypeRow& row) {
      out->append(row.name);
    };
    return FailWith(absl::StrCat("dtype ", Quoted(value),
                                 " is not supported (supported: ",
                                 absl::StrJoin(kDtypes, ", ", name), ")"));
  }
  tensor_.info.dtype = *dtype;
  has_dtype_ = true;
  return true;
}

bool HeaderHandler::start_object(std::size_t) {
  if (state_ == State::kStart) {
    state_ = State::kTop;
    return true;
  }
  if (state_ != State::kTop) return Fail("an object");
  if (key_ == "__metadata__") {
    state_ = State::kMetadata;
    return true;
  }
  state_ = State::kTensor;
  tensor_ = HeaderTensor{};
  tensor_.info.name = name_;
  has_dtype_ = has_shape_ = false;
  offsets_ = 0;
  return true;
}

bool HeaderHandler::key(string_t& key) {
  key_ = key;
  if (state_ == State::kTop) {
    name_ = key;
    if (!names_.insert(key).second) return FailWith("appears twice");
  } else if (state_ == State::kTensor) {
    const bool repeated = (key == "dtype" && has_dtype_) ||
                          (key == "shape" && has_shape_) ||
                          (key == "data_offsets" && offsets_ > 0);
    if (repeated) return FailWith(absl::StrCat(key, " appears twice"));
  }
  return true;
}

bool HeaderHandler::end_object() {
  if (state_ == State::kTop) {
    state_ = State::kStart;
    return true;
  }
  if (state_ == State::kTensor) {
    if (!has_dtype_) return FailWith("dtype is missing");
    if (!has_shape_) return FailWith("shape is missing");
    if (offsets_ != 2) return FailWith("data_offsets is missing or incomplete");
    header.tensors.push_back(std::move(tensor_));
  }
  state_ = State::kTop;
  return true;
}

bool HeaderHandler::start_array(std::size_t) {
  if (state_ != State::kTensor) return Fail("an array");
  if (key_ == "shape") {
    state_ = State::kShape;
    has_shape_ = true;
    return true;
  }
  if (key_ != "data_offsets") return Fail("an array");
  state_ = State::kOffsets;
  return true;
}

bool HeaderHandler::end_array() {
  state_ = State::kTensor;
  return true;
}

// What is wrong with a tensor by itself.
absl::Status CheckTensor(HeaderTensor& tensor, uint64_t data_bytes) {
  const std::string name = absl::StrCat("tensor ", Quoted(tensor.info.name));
  if (tensor.end < tensor.begin) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " ends before it begins (data_offsets ",
                     tensor.begin, ", ", tensor.end, ")"));
  }
  if (static_cast<uint64_t>(tensor.end) > data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " ends at ", tensor.end, ", past the file's ",
                     data_bytes, " bytes of data"));
  }
  const absl::StatusOr<int64_t> bytes =
      TensorBytes(tensor.info.dtype, tensor.info.shape);
  if (!bytes.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", bytes.status().message()));
  }
  if (*bytes != tensor.end - tensor.begin) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, " of shape [", absl::StrJoin(tensor.info.shape, ", "),
        "] and dtype ", std::string(DtypeName(tensor.info.dtype)), " needs ",
        *bytes, " bytes, but its data_offsets span ",
        tensor.end - tensor.begin));
  }
  tensor.info.size_bytes = *bytes;
  return absl::OkStatus();
}

// `next` follows `tensor` in the order of their beginnings.
absl::Status CheckNeighbours(const HeaderTensor& tensor,
                             const HeaderTensor& next) {
  if (next.begin == tensor.end) return absl::OkStatus();
  const auto place = [](const HeaderTensor& t) {
    return absl::StrCat(Quoted(t.info.name), " (data_offsets ", t.begin, ", ",
                        t.end, ")");
  };
  return absl::InvalidArgumentError(
      next.begin < tensor.end
          ? absl::StrCat("tensors ", place(tensor), " and ", place(next),
                         " overlap")
          : absl::StrCat("bytes ", tensor.end, " to ", next.begin,
                         " belong to no tensor: there is a hole between ",
                         place(tensor), " and ", place(next)));
}

}  // namespace

std::string Quoted(std::string_view name) {
  constexpr size_t kShown = 200;
  const bool cut = name.size() > kShown;
  return absl::StrCat("'",
                      absl::Utf8SafeCHexEscape(absl::string_view(
                          name.data(), std::min(name.size(), kShown))),
                      cut ? "..." : "", "'");
}

absl::StatusOr<int64_t> TensorBytes(TensorDtype dtype,
                                    const std::vector<int64_t>& shape) {
  // A zero anywhere makes an empty tensor; the product must still fit, as the
  // reference demands.
  int64_t bytes = DtypeSize(dtype);
  for (const int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(bytes, dimension, &bytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the size of shape [", absl::StrJoin(shape, ", "),
                       "] overflows 63 bits or is negative"));
    }
  }
  return bytes;
}

absl::StatusOr<Header> ParseHeader(std::string_view json, uint64_t data_bytes) {
  HeaderHandler handler;
  if (!Json::sax_parse(json, &handler)) {
    return absl::InvalidArgumentError(handler.error);
  }
  Header header = std::move(handler.header);
  std::vector<HeaderTensor>& tensors = header.tensors;
  // Each alone first: a wrong offset puts a tensor beside one that is right.
  for (HeaderTensor& tensor : tensors) {
    RETURN_IF_ERROR(CheckTensor(tensor, data_bytes));
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const HeaderTensor& a, const HeaderTensor& b) {
              return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
            });
  if (!tensors.empty() && tensors[0].begin != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("bytes 0 to ", tensors[0].begin,
                     " belong to no tensor: there is a hole before ",
                     Quoted(tensors[0].info.name)));
  }
  for (size_t i = 1; i < tensors.size(); ++i) {
    RETURN_IF_ERROR(CheckNeighbours(tensors[i - 1], tensors[i]));
  }
  const int64_t end = tensors.empty() ? 0 : tensors.back().end;
  if (static_cast<uint64_t>(end) != data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tensors end at ", end, " but the file has ",
                     data_bytes, " bytes of data"));
  }
  return header;
}

absl::StatusOr<std::string> FormatHeader(
    const std::vector<TensorToWrite>& tensors,
    const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  int64_t offset = 0;
  std::unordered_set<std::string> names;
  for (const TensorToWrite& tensor : tensors) {
    ASSIGN_OR_RETURN(const int64_t bytes,
                     TensorBytes(tensor.dtype, tensor.shape));
    if (bytes != static_cast<int64_t>(tensor.data.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quoted(tensor.name), " needs ", bytes,
                       " bytes for its shape but has ", tensor.data.size()));
    }
    if (tensor.name == "__metadata__" || !names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor name ", Quoted(tensor.name), " is reserved or repeated"));
    }
    json.push_back({tensor.name,
                    {{"dtype", DtypeName(tensor.dtype)},
                     {"shape", tensor.shape},
                     {"data_offsets", {offset, offset + bytes}}}});
    offset += bytes;
  }
  std::string text = json.dump(
      -1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxHeaderBytes) {
    return absl::InvalidArgumentError("the header would exceed 100 MB");
  }
  std::string out(8, '\0');
  for (int i = 0; i < 8; ++i) {
    out[i] = static_cast<char>(uint64_t{text.size()} >> (8 * i));
  }
  return out + text;
}

}  // namespace formats_internal
}  // namespace qlora
