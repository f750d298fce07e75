// The benchmark program behind scripts/bench.
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "bench/kernels/kernel_rows.h"
#include "bench/options.h"
#include "bench/rows.h"
#include "bench/trainer_rows.h"
#include "common/base/status_macros.h"

namespace qlora::bench {
namespace {

constexpr char kPaths[] = "Paths";

std::string CommandOf(const CLI::App& app, const Options& options) {
  // Only the script knows where the peers are.
  std::string command = options.peers.empty() ? "qlora_bench" : "scripts/bench";
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0 || option->get_group() == kPaths) continue;
    if (option->nonpositional()) command += " " + option->get_name();
    for (const std::string& value : option->results()) command += " " + value;
  }
  return command;
}

absl::Status RunAll(const Options& options) {
  std::vector<Row> rows;
  std::vector<std::string> skipped;
  RETURN_IF_ERROR(AddKernelRows(options, &rows, &skipped));
  RETURN_IF_ERROR(AddTrainerRows(options, &rows));
  for (const std::string& row : skipped) {
    std::printf("skipped %s\n", row.c_str());
  }
  if (rows.empty() && skipped.empty()) {
    return absl::InvalidArgumentError("no row's name has '" + options.filter +
                                      "'");
  }
  PrintRows(rows);
  return options.json.empty() ? absl::OkStatus() : WriteRun(options, rows);
}

int Main(int argc, char** argv) {
  Options options;
  options.trainer = std::filesystem::canonical("/proc/self/exe").parent_path() /
                    "qlora-trainer";
  CLI::App app("Speed and memory beside the peers'.");
  app.add_option("filter", options.filter, "Only rows whose name has this");
  app.add_option("--json", options.json, "Also write the run and its rows here")
      ->group(kPaths);
  app.add_option("--peer-python", options.peer_python,
                 "Python with PEFT and bitsandbytes; without it no such peer")
      ->group(kPaths);
  app.add_option("--cuda-python", options.cuda_python,
                 "The same with CUDA, for the rows kernels/cuda")
      ->group(kPaths);
  app.add_option("--peers", options.peers, "Directory of the peers' programs")
      ->group(kPaths);
  app.add_option("--steps", options.steps, "Steps of both trainers")
      ->check(CLI::Range(2, 1000));
  app.add_option("--turns", options.turns, "Times that each kernel is timed")
      ->check(CLI::Range(1, 1000));
  app.add_option("--memory", options.memory,
                 "Bytes that our trainer may take (default: what it likes)");
  app.add_option("--threads", options.threads, "Compute threads");
  CLI11_PARSE(app, argc, argv);
  options.command = CommandOf(app, options);
  const absl::Status status = RunAll(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace qlora::bench

int main(int argc, char** argv) { return qlora::bench::Main(argc, argv); }
