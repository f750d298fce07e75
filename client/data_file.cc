#include "client/data_file.h"

#include <filesystem>
#include <fstream>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr char kRemedy[] = ": add records to it";

}  // namespace

absl::Status CheckDataFile(const std::string& path, const std::string& name) {
  std::error_code error;
  if (fs::is_directory(path, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is a directory; data is one file"));
  }
  if (!fs::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is no regular file"));
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) return ErrnoToStatus(errno, path);
  std::vector<char> buffer(64 << 10);
  bool any = false;
  while (in.read(buffer.data(), buffer.size()), in.gcount() > 0) {
    std::string_view text(buffer.data(), in.gcount());
    if (!any && text.starts_with(kByteOrderMark)) {
      text.remove_prefix(kByteOrderMark.size());
    }
    any = true;
    if (text.find('\0') != std::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("data file ", name, " is not text (UTF-8)"));
    }
    if (text.find_first_not_of(" \t\r\n") != std::string_view::npos) {
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("data file ", name,
                   any ? " has only blank lines" : " is empty", kRemedy));
}

}  // namespace qlora::client
