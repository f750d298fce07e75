#include "client/terminal.h"

#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace qlora::client {
namespace {

bool LocaleIsUtf8() {
  for (const char* variable : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(variable);
    if (value == nullptr || value[0] == '\0') continue;
    return strcasestr(value, "utf-8") != nullptr ||
           strcasestr(value, "utf8") != nullptr;
  }
  return false;
}

int PositiveVariable(const char* name, int fallback) {
  const char* value = std::getenv(name);
  const int number = value == nullptr ? 0 : std::atoi(value);
  return number > 0 ? number : fallback;
}

// Length in bytes of the escape sequence or character that begins at i, and
// whether it takes a column.
struct Glyph {
  size_t bytes;
  bool visible;
};

Glyph GlyphAt(const std::string& text, size_t i) {
  if (text[i] == '\x1b') {
    size_t end = i + 1;
    while (end < text.size() &&
           !std::isalpha(static_cast<unsigned char>(text[end]))) {
      ++end;
    }
    return {std::min(end + 1, text.size()) - i, false};
  }
  size_t end = i + 1;
  while (end < text.size() && (text[end] & 0xC0) == 0x80) ++end;
  return {end - i, true};
}

std::string CutToWidth(const std::string& text, int width) {
  std::string cut;
  int columns = 0;
  for (size_t i = 0; i < text.size();) {
    const Glyph glyph = GlyphAt(text, i);
    if (!glyph.visible || columns < width) cut.append(text, i, glyph.bytes);
    columns += glyph.visible;
    i += glyph.bytes;
  }
  return cut;
}

}  // namespace

Terminal DetectTerminal() {
  Terminal terminal;
  terminal.out = ::isatty(STDOUT_FILENO) == 1;
  terminal.err = ::isatty(STDERR_FILENO) == 1;
  const char* term = std::getenv("TERM");
  const bool dumb = term == nullptr || std::strcmp(term, "dumb") == 0;
  const char* no_color = std::getenv("NO_COLOR");
  terminal.color =
      terminal.out && !dumb && (no_color == nullptr || no_color[0] == '\0');
  terminal.utf8 = LocaleIsUtf8();
  winsize size{};
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
    if (::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) break;
  }
  terminal.width =
      size.ws_col > 0 ? size.ws_col : PositiveVariable("COLUMNS", 80);
  terminal.height =
      size.ws_row > 0 ? size.ws_row : PositiveVariable("LINES", 24);
  return terminal;
}

int DisplayWidth(const std::string& text) {
  int columns = 0;
  for (size_t i = 0; i < text.size();) {
    const Glyph glyph = GlyphAt(text, i);
    columns += glyph.visible;
    i += glyph.bytes;
  }
  return columns;
}

void ProgressLine::Show(const std::string& text) {
  if (!enabled_) return;
  const std::string line = CutToWidth(prefix_ + text.substr(0, text.find('\n')),
                                      DetectTerminal().width - 1);
  if (line == shown_) return;
  absl::FPrintF(stderr, "\r\x1b[K%s", line);
  std::fflush(stderr);
  shown_ = line;
}

void ProgressLine::Clear() {
  if (shown_.empty()) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  shown_.clear();
}

std::string Bar(double fraction, int cells, bool utf8) {
  const int full =
      static_cast<int>(std::clamp(fraction, 0.0, 1.0) * cells + 0.5);
  std::string bar;
  for (int i = 0; i < cells; ++i) {
    if (utf8) {
      bar += i < full ? "█" : "░";
    } else {
      bar += i < full ? "#" : ".";
    }
  }
  return absl::StrCat("[", bar, "]");
}

std::string ShortDuration(absl::Duration duration) {
  const int64_t seconds = std::max<int64_t>(absl::ToInt64Seconds(duration), 0);
  if (seconds >= 86400) {
    return absl::StrFormat("%dd%02dh", seconds / 86400, seconds / 3600 % 24);
  }
  if (seconds >= 3600) {
    return absl::StrFormat("%dh%02dm", seconds / 3600, seconds / 60 % 60);
  }
  if (seconds >= 60) {
    return absl::StrFormat("%dm%02ds", seconds / 60, seconds % 60);
  }
  return absl::StrCat(seconds, "s");
}

std::string FormatNumber(double value) {
  return std::isnan(value) ? "nan" : absl::StrFormat("%.4g", value);
}

std::string FormatLoss(double value) {
  return std::isnan(value) ? "nan" : absl::StrFormat("%.4f", value);
}

}  // namespace qlora::client
