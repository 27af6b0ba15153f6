#include "png_chunks.hpp"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cmt/error.hpp>
#include <vector>

#include "decoders.hpp"
#include "orientation.hpp"

namespace cmt {
namespace {

constexpr std::string_view kPngSignature("\x89PNG\r\n\x1A\n", 8);
constexpr std::size_t kAround = 12;  ///< bytes of a chunk beside its data
constexpr std::size_t kMostText = std::size_t{1} << 20;
constexpr std::uint64_t kMostDeflated = 1040;  ///< times, a little more than DEFLATE can
constexpr int kPalette = 3;

struct Chunk {
  std::string_view name;
  std::string_view data;
};

std::uint32_t big_endian_32(std::string_view bytes, std::size_t place) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    value = value << 8 | static_cast<std::uint8_t>(bytes[place + i]);
  }
  return value;
}

std::uint32_t checksum(std::string_view bytes) {
  return static_cast<std::uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

/// Up to and with IEND.
std::vector<Chunk> chunks_of(std::string_view content) {
  std::vector<Chunk> chunks;
  std::string_view rest = content.substr(kPngSignature.size());
  do {
    if (rest.size() < kAround) refuse_damaged("it ends too early");
    const std::size_t length = big_endian_32(rest, 0);
    if (length > rest.size() - kAround) refuse_damaged("it ends too early");
    if (checksum(rest.substr(4, 4 + length)) != big_endian_32(rest, 8 + length)) {
      refuse_damaged("wrong checksum");
    }
    chunks.push_back({rest.substr(4, 4), rest.substr(8, length)});
    rest.remove_prefix(kAround + length);
  } while (chunks.back().name != "IEND");
  return chunks;
}

void append_number(std::string& target, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) target += static_cast<char>(value >> shift & 255);
}

void append(std::string& target, const Chunk& chunk) {
  append_number(target, static_cast<std::uint32_t>(chunk.data.size()));
  const std::size_t begin = target.size();
  target += chunk.name;
  target += chunk.data;
  append_number(target, checksum(std::string_view(target).substr(begin)));
}

struct Header {
  std::uint32_t width;
  std::uint32_t height;
  int depth;
  int colour;
  bool interlaced;
};

int channels_of(int colour) {
  constexpr std::array<int, 7> kChannels{1, 0, 3, 1, 2, 0, 4};
  return kChannels.at(static_cast<std::size_t>(colour));
}

bool exists(int depth, int colour) {
  const bool bytes = depth == 8 || depth == 16;
  if (colour == 2 || colour == 4 || colour == 6) return bytes;
  if (colour != 0 && colour != kPalette) return false;
  return depth == 1 || depth == 2 || depth == 4 || depth == 8 || (depth == 16 && colour == 0);
}

Header header_of(const std::vector<Chunk>& chunks) {
  const auto odd = [](const Chunk& chunk) {
    const auto& name = chunk.name;
    return (name[0] & 0x20) == 0 && name != "PLTE" && name != "IDAT" && name != "IEND";
  };
  const Chunk& first = chunks.front();
  if (first.name != "IHDR" || first.data.size() != 13 ||
      std::any_of(chunks.begin() + 1, chunks.end(), odd)) {
    refuse_damaged("odd chunks");
  }
  const auto byte = [&](std::size_t place) { return static_cast<std::uint8_t>(first.data[place]); };
  const Header header{big_endian_32(first.data, 0), big_endian_32(first.data, 4), byte(8), byte(9),
                      byte(12) == 1};
  if (!exists(header.depth, header.colour) || byte(10) != 0 || byte(11) != 0 || byte(12) > 1) {
    throw InputError("it has an odd format: convert it");
  }
  return header;
}

/// Bytes of all rows with their filters.
std::uint64_t unpacked_size(const Header& header) {
  struct Pass {
    std::uint32_t left, top, across, down;
  };
  constexpr std::array<Pass, 7> kInterlaced{{{0, 0, 8, 8},
                                             {4, 0, 8, 8},
                                             {0, 4, 4, 8},
                                             {2, 0, 4, 4},
                                             {0, 2, 2, 4},
                                             {1, 0, 2, 2},
                                             {0, 1, 1, 2}}};
  const auto bits = static_cast<std::uint64_t>(header.depth) *
                    static_cast<std::uint64_t>(channels_of(header.colour));
  const auto size = [&](const Pass& pass) -> std::uint64_t {
    if (header.width <= pass.left || header.height <= pass.top) return 0;
    const std::uint64_t columns = (header.width - pass.left + pass.across - 1) / pass.across;
    const std::uint64_t rows = (header.height - pass.top + pass.down - 1) / pass.down;
    return rows * (1 + (columns * bits + 7) / 8);
  };
  if (!header.interlaced) return size({0, 0, 1, 1});
  std::uint64_t total = 0;
  for (const Pass& pass : kInterlaced) total += size(pass);
  return total;
}

bool is_data(const Chunk& chunk) { return chunk.name == "IDAT"; }

/// As many colours as pixels can name, black where the file gives fewer.
std::string palette_of(const std::vector<Chunk>& chunks, int depth) {
  const auto is_palette = [](const Chunk& chunk) { return chunk.name == "PLTE"; };
  const auto found = std::find_if(chunks.begin(), chunks.end(), is_palette);
  if (std::count_if(chunks.begin(), chunks.end(), is_palette) != 1 ||
      found > std::find_if(chunks.begin(), chunks.end(), is_data)) {
    refuse_damaged("no palette");
  }
  std::string palette(found->data);
  if (palette.empty() || palette.size() > 768 || palette.size() % 3 != 0)
    refuse_damaged("odd palette");
  palette.resize(std::size_t{3} << depth, '\0');
  return palette;
}

/// All IDAT, which follow on each other.
std::vector<Chunk> image_data(const std::vector<Chunk>& chunks) {
  const auto begin = std::find_if(chunks.begin(), chunks.end(), is_data);
  const auto end = std::find_if_not(begin, chunks.end(), is_data);
  if (begin == end || std::any_of(end, chunks.end(), is_data))
    refuse_damaged("no pixels, or in pieces");
  return {begin, end};
}

/// A running decompression.
class Unpacker {
 public:
  Unpacker() {
    if (inflateInit(&stream_) != Z_OK) throw std::bad_alloc();
  }
  Unpacker(const Unpacker&) = delete;
  Unpacker& operator=(const Unpacker&) = delete;
  ~Unpacker() { inflateEnd(&stream_); }

  void give(std::string_view packed) {
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
    stream_.avail_in = static_cast<uInt>(packed.size());
  }

  /// Fills `target` as far as what was given reaches, and says how far; false where it is damaged.
  bool unpack(char* target, std::size_t& size) {
    stream_.next_out = reinterpret_cast<Bytef*>(target);
    stream_.avail_out = static_cast<uInt>(size);
    const int result = inflate(&stream_, Z_SYNC_FLUSH);
    size -= stream_.avail_out;
    ended_ = result == Z_STREAM_END;
    return ended_ || result == Z_OK || result == Z_BUF_ERROR;
  }

  bool ended() const { return ended_; }
  std::size_t left() const { return stream_.avail_in; }

 private:
  z_stream stream_{};
  bool ended_ = false;
};

/// Refuses other than `size` bytes of pixels: decoders make up what is missing, each its own.
void check_pixels(const std::vector<Chunk>& data, std::uint64_t size) {
  Unpacker unpacker;
  std::string piece(std::size_t{1} << 16, '\0');
  std::uint64_t total = 0;
  for (const Chunk& chunk : data) {
    if (unpacker.ended() && !chunk.data.empty()) refuse_damaged("odd pixels");
    unpacker.give(chunk.data);
    for (std::size_t made = piece.size(); made == piece.size() && !unpacker.ended();) {
      if (!unpacker.unpack(piece.data(), made)) refuse_damaged("odd pixels");
      total += made;
      if (total > size) refuse_damaged("odd pixels");
    }
    if (unpacker.left() > 0) refuse_damaged("odd pixels");
  }
  if (total < size || !unpacker.ended()) refuse_damaged("too few pixels");
}

/// As it is where it cannot be unpacked, or is too long.
std::string unpacked(std::string_view packed) {
  std::string text(kMostText, '\0');
  std::size_t size = text.size();
  Unpacker unpacker;
  unpacker.give(packed);
  if (!unpacker.unpack(text.data(), size) || !unpacker.ended()) return std::string(packed);
  text.resize(size);
  return text;
}

/// What follows a text chunk's keyword.
std::string text_of(const Chunk& chunk, std::string_view rest) {
  if (chunk.name == "tEXt") return std::string(rest);
  if (chunk.name == "zTXt") return unpacked(rest.substr(std::min<std::size_t>(1, rest.size())));
  if (rest.size() < 2) return std::string(rest);
  std::size_t begin = 2;
  for (int field = 0; field < 2; ++field) {  // language, translated keyword
    const std::size_t end = rest.find('\0', begin);
    if (end == std::string_view::npos) return std::string(rest);
    begin = end + 1;
  }
  const std::string_view body = rest.substr(begin);
  return rest[0] == '\0' ? std::string(body) : unpacked(body);
}

/// Of several the last.
void collect_metadata(const std::vector<Chunk>& chunks, Png& png) {
  std::string profile;
  for (const Chunk& chunk : chunks) {
    if (chunk.name == "eXIf") png.exif = chunk.data;
    if (chunk.name == "sBIT") {
      png.significant_bits.reset();
      if (!chunk.data.empty()) png.significant_bits = static_cast<std::uint8_t>(chunk.data[0]);
    }
    if (chunk.name != "tEXt" && chunk.name != "zTXt" && chunk.name != "iTXt") continue;
    const std::size_t end = std::min(chunk.data.find('\0'), chunk.data.size());
    const std::string_view key = chunk.data.substr(0, end);
    const std::string_view rest = chunk.data.substr(std::min(end + 1, chunk.data.size()));
    if (key == "XML:com.adobe.xmp") png.xmp = text_of(chunk, rest);
    if (key == "Raw profile type exif") profile = from_raw_profile(text_of(chunk, rest));
  }
  if (png.exif.empty()) png.exif = std::move(profile);
}

}  // namespace

Png read_png(std::string_view content) {
  const std::vector<Chunk> chunks = chunks_of(content);
  const Header header = header_of(chunks);
  Png png;
  png.width = header.width;
  png.height = header.height;
  png.deep = header.depth == 16;
  png.grey = header.colour == 0;
  png.pixels = kPngSignature;
  append(png.pixels, chunks.front());
  if (header.colour == kPalette) append(png.pixels, {"PLTE", palette_of(chunks, header.depth)});
  std::uint64_t deflated = 0;
  const std::vector<Chunk> data = image_data(chunks);
  for (const Chunk& chunk : data) {
    deflated += chunk.data.size();
    append(png.pixels, chunk);
  }
  check_size(header.width, header.height, std::uint64_t{header.width} * header.height);
  if (unpacked_size(header) > kMostDeflated * deflated) check_size(header.width, header.height, 0);
  check_pixels(data, unpacked_size(header));
  append(png.pixels, {"IEND", {}});
  collect_metadata(chunks, png);
  return png;
}

}  // namespace cmt
