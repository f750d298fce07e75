#include "client/terminal.h"

#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <span>

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

struct Range {
  char32_t first;
  char32_t last;
};
// Unicode's East Asian Wide and Fullwidth, and pictures, by blocks.
constexpr Range kWide[] = {
    {0x1100, 0x115F},   {0x2E80, 0x303E},   {0x3041, 0xA4CF},
    {0xA960, 0xA97F},   {0xAC00, 0xD7A3},   {0xF900, 0xFAFF},
    {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},   {0xFFE0, 0xFFE6},
    {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F900, 0x1FAFF},
    {0x20000, 0x3FFFD},
};
// Drawn on the character before, or not at all.
constexpr Range kCombining[] = {
    {0x0300, 0x036F}, {0x0483, 0x0489}, {0x0591, 0x05BD},   {0x064B, 0x065F},
    {0x093C, 0x093C}, {0x0941, 0x0948}, {0x0E34, 0x0E3A},   {0x0E47, 0x0E4E},
    {0x1AB0, 0x1AFF}, {0x1DC0, 0x1DFF}, {0x200B, 0x200F},   {0x20D0, 0x20FF},
    {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F}, {0xE0100, 0xE01EF},
};

bool IsOneOf(char32_t character, std::span<const Range> ranges) {
  return std::any_of(ranges.begin(), ranges.end(), [=](const Range& range) {
    return character >= range.first && character <= range.last;
  });
}

// Length in bytes of the escape sequence or character that begins at i, and
// the columns that it takes.
struct Glyph {
  size_t bytes;
  int columns;
};

Glyph GlyphAt(const std::string& text, size_t i) {
  if (text[i] == '\x1b') {
    size_t end = i + 1;
    while (end < text.size() &&
           !std::isalpha(static_cast<unsigned char>(text[end]))) {
      ++end;
    }
    return {std::min(end + 1, text.size()) - i, 0};
  }
  size_t end = i + 1;
  while (end < text.size() && (text[end] & 0xC0) == 0x80) ++end;
  // The first of n bytes says so with n + 1 bits, each other one with two.
  const size_t bytes = end - i;
  char32_t character =
      text[i] & (bytes > 1 ? 0xFF >> std::min<size_t>(bytes + 1, 7) : 0x7F);
  for (size_t k = i + 1; k < end; ++k) {
    character = character << 6 | (text[k] & 0x3F);
  }
  if (IsOneOf(character, kCombining)) return {bytes, 0};
  return {bytes, IsOneOf(character, kWide) ? 2 : 1};
}

// Escape sequences stay, so that colours end.
std::string CutToWidth(const std::string& text, int width) {
  std::string cut;
  int columns = 0;
  for (size_t i = 0; i < text.size();) {
    const Glyph glyph = GlyphAt(text, i);
    columns += glyph.columns;
    if (text[i] == '\x1b' || columns <= width) cut.append(text, i, glyph.bytes);
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
    columns += glyph.columns;
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
