#include "bench/host.h"

#include <unistd.h>

#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "bench/kernels/cuda_rows.h"

namespace qlora::bench {
namespace {

// Without spaces and quotation marks around it.
std::string Bare(const std::string& text) {
  constexpr char kAround[] = " \t\"";
  const size_t begin = text.find_first_not_of(kAround);
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(kAround) + 1 - begin);
}

// Of a file of lines "key SEPARATOR value"; the first of a key counts.
std::map<std::string, std::string> Fields(const char* path, char separator) {
  std::map<std::string, std::string> fields;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t end = line.find(separator);
    if (end == std::string::npos) continue;
    fields.emplace(Bare(line.substr(0, end)), Bare(line.substr(end + 1)));
  }
  return fields;
}

// By Linux's names.
std::string InstructionSets(const std::string& flags) {
  const std::set<std::string> all = absl::StrSplit(flags, ' ');
  std::vector<std::string> words;
  for (const char* name :
       {"avx2", "avx512f", "avx512vbmi", "avx512_bf16", "amx_bf16"}) {
    words.push_back(absl::StrCat(all.count(name) > 0 ? "" : "no ", name));
  }
  return absl::StrJoin(words, ", ");
}

}  // namespace

std::string DescribeHost() {
  auto processor = Fields("/proc/cpuinfo", ':');
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
                        static_cast<double>(sysconf(_SC_PAGE_SIZE));
  const std::string device = CudaDeviceName();
  return absl::StrJoin(
      {absl::StrCat(processor["model name"], " family ",
                    processor["cpu family"], " model ", processor["model"]),
       absl::StrCat(sysconf(_SC_NPROCESSORS_ONLN), " vCPU"),
       absl::StrFormat("%.0f GiB", memory / (1 << 30)),
       InstructionSets(processor["flags"]),
       Fields("/etc/os-release", '=')["PRETTY_NAME"],
       device.empty() ? "no CUDA device" : device},
      ", ");
}

}  // namespace qlora::bench
