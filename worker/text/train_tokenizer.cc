// qlora-train-tokenizer: makes a byte-level BPE tokenizer.json out of text.
#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "nlohmann/json.hpp"
#include "worker/text/qlora_text.h"

int main(int argc, char** argv) {
  CLI::App app("Trains a byte-level BPE tokenizer on text files.");
  std::vector<std::string> files;
  std::vector<std::string> special_tokens;
  std::string out_path;
  uint32_t vocab_size = 0;
  app.add_option("files", files, "UTF-8 text files")->required();
  app.add_option("--vocab-size", vocab_size,
                 "Tokens in all, at least 256 more than special tokens")
      ->required();
  app.add_option("--special", special_tokens,
                 "Special token; repeat it. They get the ids from 0 on")
      ->take_all()
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--out", out_path, "The tokenizer.json to write")->required();
  CLI11_PARSE(app, argc, argv);

  std::vector<const char*> names;
  for (const std::string& file : files) names.push_back(file.c_str());
  const std::string special = nlohmann::json(special_tokens).dump();
  QloraString error = {};
  if (qlora_tokenizer_train_bpe(names.data(), names.size(), vocab_size,
                                special.data(), special.size(), out_path.data(),
                                out_path.size(), &error) != 0) {
    std::fprintf(stderr, "error: %.*s\n", static_cast<int>(error.size),
                 error.data);
    qlora_text_free_string(&error);
    return 1;
  }
  return 0;
}
