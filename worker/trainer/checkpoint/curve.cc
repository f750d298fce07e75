#include "worker/trainer/checkpoint/curve.h"

#include <array>
#include <fstream>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora::trainer {
namespace {

// A line's kind.
bool HasEvaluation(const std::string& line) {
  return line.find("\"eval_loss\"") != std::string::npos;
}

absl::StatusOr<int64_t> StepOf(const std::string& line) {
  constexpr absl::string_view kKey = "\"step\":";
  absl::string_view rest = line;
  const size_t key = rest.find(kKey);
  if (key != rest.npos) {
    rest.remove_prefix(key + kKey.size());
    int64_t step = 0;
    if (absl::SimpleAtoi(rest.substr(0, rest.find_first_of(",}")), &step)) {
      return step;
    }
  }
  return absl::DataLossError(
      absl::StrCat("a line of the curve has no step: ", line.substr(0, 80)));
}

}  // namespace

absl::StatusOr<std::string> CopyCurve(const std::string& from,
                                      const std::string& to) {
  std::ifstream in(from, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(from, " cannot be read"));
  std::string line, newest;
  while (std::getline(in, line)) newest = line;
  int64_t last_step = 0;
  if (!newest.empty()) {
    ASSIGN_OR_RETURN(last_step, StepOf(newest));
  }
  int64_t stride = 1;
  while (last_step / stride > kCurveLines) stride *= 2;

  in.clear();
  in.seekg(0);
  ASSIGN_OR_RETURN(const std::unique_ptr<FileWriter> writer,
                   FileWriter::Create(to));
  // Of each kind, where its newest kept line lies.
  std::array<int64_t, 2> kept = {-1, -1};
  while (std::getline(in, line)) {
    ASSIGN_OR_RETURN(const int64_t step, StepOf(line));
    int64_t& of_kind = kept[HasEvaluation(line) ? 1 : 0];
    if (step / stride == of_kind && step != last_step) continue;
    of_kind = step / stride;
    RETURN_IF_ERROR(writer->Append(line + "\n"));
  }
  if (in.bad()) {
    return absl::UnavailableError(absl::StrCat(from, " cannot be read"));
  }
  return writer->Commit();
}

}  // namespace qlora::trainer
