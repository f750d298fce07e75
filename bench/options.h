// What the command line of scripts/bench says.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <thread>

namespace qlora::bench {

struct Options {
  // What a person types for the same run, without paths of this machine.
  std::string command;
  // Only rows whose name has it.
  std::string filter;
  std::string json;
  // Of the environment that scripts/parity makes; empty: no peers in Python.
  std::string peer_python;
  // Of an environment that has CUDA, for peers of the rows kernels/cuda.
  std::string cuda_python;
  // Directory of their programs.
  std::string peers;
  // Path of qlora-trainer.
  std::string trainer;
  int steps = 6;
  // How often each kernel, its peer and the limits are timed by turns.
  int turns = 12;
  // Our trainer plans for so much; 0: for as much as it likes.
  int64_t memory = 0;
  int threads = static_cast<int>(std::thread::hardware_concurrency());

  bool Wants(std::string_view name) const {
    return name.find(filter) != std::string_view::npos;
  }
};

}  // namespace qlora::bench
