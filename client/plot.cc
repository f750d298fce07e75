#include "client/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/terminal.h"

namespace qlora::client {
namespace {

constexpr int kLabelWidth = 10;
constexpr int kMinCells = 8;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void Add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
  // Where the value lies, 0 to 1; the middle of a range of one value.
  double Fraction(double value) const {
    return high > low ? (value - low) / (high - low) : 0.5;
  }
};

bool IsFinite(const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second);
}

// A grid of dots, several to a character cell.
class Canvas {
 public:
  // braille: four by two dots a cell; otherwise the curve's mark.
  Canvas(int columns, int rows, bool braille, bool color)
      : braille_(braille),
        color_(color),
        columns_(columns),
        rows_(rows),
        dots_x_(braille ? 2 : 1),
        dots_y_(braille ? 4 : 1),
        dots_(static_cast<size_t>(columns) * rows, 0),
        curves_(dots_.size(), nullptr) {}

  int width() const { return columns_ * dots_x_; }
  int height() const { return rows_ * dots_y_; }

  // From the left, from the bottom.
  void Set(int x, int y, const Series& curve) {
    const int from_top = height() - 1 - y;
    const size_t cell =
        static_cast<size_t>(from_top / dots_y_) * columns_ + x / dots_x_;
    // Unicode's numbering of the dots of a braille cell, by column and row.
    static constexpr uint8_t kDot[2][4] = {{0x01, 0x02, 0x04, 0x40},
                                           {0x08, 0x10, 0x20, 0x80}};
    dots_[cell] |= kDot[x % dots_x_][from_top % dots_y_];
    curves_[cell] = &curve;
  }

  void Line(int x0, int y0, int x1, int y1, const Series& curve) {
    const int steps = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
    for (int i = 0; i <= steps; ++i) {
      const double t = static_cast<double>(i) / steps;
      Set(static_cast<int>(std::lround(x0 + t * (x1 - x0))),
          static_cast<int>(std::lround(y0 + t * (y1 - y0))), curve);
    }
  }

  std::string Row(int row) const {
    std::string text;
    // Blanks between two cells of a curve have no colour to change.
    const Series* painted = nullptr;
    for (int column = 0; column < columns_; ++column) {
      const size_t cell = static_cast<size_t>(row) * columns_ + column;
      const Series* curve = curves_[cell];
      if (color_ && curve != nullptr && curve != painted) {
        absl::StrAppendFormat(&text, "\x1b[%dm", curve->color);
        painted = curve;
      }
      text += Glyph(cell);
    }
    absl::StripTrailingAsciiWhitespace(&text);
    if (painted != nullptr) text += "\x1b[0m";
    return text;
  }

 private:
  std::string Glyph(size_t cell) const {
    const uint8_t dots = dots_[cell];
    if (dots == 0) return " ";
    if (!braille_) return std::string(1, curves_[cell]->mark);
    // U+2800 + dots in UTF-8.
    const char bytes[] = {'\xE2', static_cast<char>(0xA0 | (dots >> 6)),
                          static_cast<char>(0x80 | (dots & 0x3F))};
    return std::string(bytes, sizeof(bytes));
  }

  const bool braille_;
  const bool color_;
  const int columns_;
  const int rows_;
  const int dots_x_;
  const int dots_y_;
  std::vector<uint8_t> dots_;
  // Drawn last in a cell.
  std::vector<const Series*> curves_;
};

void DrawSeries(const Series& series, const Range& xs, const Range& ys,
                Canvas& canvas) {
  bool pen_down = false;
  int last_x = 0;
  int last_y = 0;
  for (const auto& point : series.points) {
    if (!IsFinite(point)) {
      pen_down = false;
      continue;
    }
    const int x = static_cast<int>(
        std::lround(xs.Fraction(point.first) * (canvas.width() - 1)));
    const int y = static_cast<int>(
        std::lround(ys.Fraction(point.second) * (canvas.height() - 1)));
    canvas.Line(pen_down ? last_x : x, pen_down ? last_y : y, x, y, series);
    last_x = x;
    last_y = y;
    pen_down = true;
  }
}

std::string RowLabel(int row, int rows, const Range& ys) {
  if (row == 0) return FormatNumber(ys.high);
  if (row == rows - 1) return FormatNumber(ys.low);
  return "";
}

std::string XAxis(const Range& xs, int columns, const PlotStyle& style) {
  const std::string first = FormatNumber(xs.low);
  const std::string last = FormatNumber(xs.high);
  std::string line;
  for (int i = 0; i < columns; ++i) line += style.utf8 ? "─" : "-";
  const int gap = columns - static_cast<int>(first.size() + last.size());
  return absl::StrCat(std::string(kLabelWidth, ' '), style.utf8 ? " └" : " +",
                      line, "\n", std::string(kLabelWidth + 2, ' '), first,
                      std::string(std::max(gap, 1), ' '), last, "\n");
}

std::string Title(const std::string& title, const std::vector<Series>& series,
                  bool braille, const PlotStyle& style) {
  std::string text = title;
  if (series.size() > 1) {
    for (const Series& s : series) {
      const std::string mark = braille ? "⠶" : std::string(1, s.mark);
      absl::StrAppend(&text, "  ",
                      style.color
                          ? absl::StrFormat("\x1b[%dm%s\x1b[0m", s.color, mark)
                          : mark,
                      " ", s.name);
    }
  }
  return text + "\n";
}

}  // namespace

std::string DrawChart(const std::string& title,
                      const std::vector<Series>& series,
                      const PlotStyle& style) {
  Range xs;
  Range ys;
  for (const Series& s : series) {
    for (const auto& point : s.points) {
      if (!IsFinite(point)) continue;
      xs.Add(point.first);
      ys.Add(point.second);
    }
  }
  if (xs.empty()) return absl::StrCat(title, ": nothing to draw\n");
  const int columns = std::max(style.width - kLabelWidth - 3, kMinCells);
  const int rows = std::max(style.height - 3, 2);
  const bool braille = style.utf8 && (style.color || series.size() == 1);
  Canvas canvas(columns, rows, braille, style.color);
  for (const Series& s : series) DrawSeries(s, xs, ys, canvas);
  std::string text = Title(title, series, braille, style);
  for (int row = 0; row < rows; ++row) {
    std::string line =
        absl::StrFormat("%*s %s%s", kLabelWidth, RowLabel(row, rows, ys),
                        style.utf8 ? "│" : "|", canvas.Row(row));
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  }
  return text + XAxis(xs, columns, style);
}

std::string DrawMetrics(const std::vector<v1::MetricPoint>& points,
                        const PlotStyle& style) {
  Series loss{"loss", {}, 36};
  Series eval{"evaluation loss", {}, 33, 'o'};
  Series rate{"learning rate", {}, 32};
  for (const v1::MetricPoint& point : points) {
    const auto step = static_cast<double>(point.step());
    loss.points.emplace_back(step, point.loss());
    rate.points.emplace_back(step, point.learning_rate());
    if (point.has_eval_loss())
      eval.points.emplace_back(step, point.eval_loss());
  }
  std::vector<Series> losses = {loss};
  if (!eval.points.empty()) losses.push_back(eval);
  std::string title = "loss";
  if (!points.empty()) {
    absl::StrAppendFormat(&title, "  %.4f -> %.4f", points.front().loss(),
                          points.back().loss());
  }
  PlotStyle small = style;
  small.height = std::max(style.height / 2, 6);
  return DrawChart(title, losses, style) + "\n" +
         DrawChart("learning rate", {rate}, small);
}

}  // namespace qlora::client
