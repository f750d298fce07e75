// What is known about the terminal, and one line of progress on it.
#pragma once

#include <cstdio>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "common/base/format.h"

namespace qlora::client {

struct Terminal {
  // Standard output and standard error are terminals.
  bool out = false;
  bool err = false;
  // Colour on standard output is wanted: a terminal, no NO_COLOR, TERM not
  // "dumb".
  bool color = false;
  // The locale shows characters beyond ASCII.
  bool utf8 = false;
  // Columns; 80 when unknown.
  int width = 80;
  int height = 24;
};

Terminal DetectTerminal();

// Columns that a UTF-8 text takes: two for wide characters, none for combining
// ones and escape sequences.
int DisplayWidth(const std::string& text);

// A line on standard error that is written over. Does nothing when disabled.
// For one thread.
class ProgressLine {
 public:
  explicit ProgressLine(bool enabled) : enabled_(enabled) {}
  ~ProgressLine() { Clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  bool enabled() const { return enabled_; }
  // The prefix, then the text; cut to the terminal's width. Writes nothing if
  // the line reads so already.
  void Show(const std::string& text);
  // Stands before each line from now on: "2/5 ".
  void SetPrefix(std::string prefix) { prefix_ = std::move(prefix); }
  // Removes the line, so that other output can follow.
  void Clear();

 private:
  const bool enabled_;
  std::string prefix_;
  // Empty: none.
  std::string shown_;
};

// "[#####.....]" or with block characters, `cells` wide; fraction is clamped.
std::string Bar(double fraction, int cells, bool utf8);

// "1h02m", "3m20s", "12s".
std::string ShortDuration(absl::Duration duration);
// Significant digits without trailing zeros: "2e-04", "0.0312", "1.843".
std::string FormatNumber(double value);
// Four digits behind the point. A NaN is "nan" here and above, whatever its
// sign.
std::string FormatLoss(double value);

}  // namespace qlora::client
