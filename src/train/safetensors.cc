#include "train/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "megafold/core/error.h"
#include "train/files.h"

namespace megafold::train {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

using Json = nlohmann::json;

constexpr const char* kMetadataKey = "__metadata__";
constexpr std::uint64_t kHeaderLimit = 100'000'000;  // the format's own limit
constexpr std::size_t kAlignment = 8;

struct Dtype {
  at::ScalarType type;
  const char* name;
};
constexpr std::array<Dtype, 13> kDtypes = {{{at::kDouble, "F64"},
                                            {at::kFloat, "F32"},
                                            {at::kHalf, "F16"},
                                            {at::kBFloat16, "BF16"},
                                            {at::kLong, "I64"},
                                            {at::kInt, "I32"},
                                            {at::kShort, "I16"},
                                            {at::kChar, "I8"},
                                            {at::kUInt64, "U64"},
                                            {at::kUInt32, "U32"},
                                            {at::kUInt16, "U16"},
                                            {at::kByte, "U8"},
                                            {at::kBool, "BOOL"}}};

const char* NameOf(at::ScalarType type, const std::string& tensor) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.type == type) return dtype.name;
  }
  Fail(ErrorCode::kInvalidArgument, "safetensors has no dtype for ", at::toString(type),
       " (tensor '", tensor, "')");
}

std::span<const std::byte> BytesOf(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

// Wide elements first, so that every tensor begins at a multiple of its element's size.
std::vector<NamedTensors::const_iterator> InFileOrder(const NamedTensors& tensors) {
  std::vector<NamedTensors::const_iterator> order;
  for (auto it = tensors.begin(); it != tensors.end(); ++it) order.push_back(it);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return a->second.element_size() > b->second.element_size();
  });
  return order;
}

// One file being read; knows how to complain about it.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& file) : file_(file) {
    std::error_code error;
    file_bytes_ = std::filesystem::file_size(file, error);
    stream_.open(file, std::ios::binary);
    if (error || !stream_) Fail(ErrorCode::kNotFound, file.string(), ": cannot read this file");
  }

  SafetensorsFile Read() {
    const Json header = ReadHeader();
    SafetensorsFile result;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    for (const auto& [name, entry] : header.items()) {
      if (name == kMetadataKey) {
        ReadMetadata(entry, &result.metadata);
      } else {
        result.tensors.emplace(name, ReadTensor(name, entry, &ranges));
      }
    }
    CheckCovered(std::move(ranges));
    return result;
  }

 private:
  template <typename... Args>
  [[noreturn]] void Corrupt(const Args&... what) const {
    Fail(ErrorCode::kDataCorrupt, file_.string(), ": ", what...);
  }

  void ReadBytes(void* to, std::uint64_t bytes) {
    stream_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    if (!stream_) Corrupt("torn: the file ends early");
  }

  Json ReadHeader() {
    std::uint64_t length = 0;
    if (file_bytes_ < sizeof length) Corrupt("torn: ", file_bytes_, " bytes hold no header");
    ReadBytes(&length, sizeof length);
    if (length > kHeaderLimit || length > file_bytes_ - sizeof length) {
      Corrupt("torn: a header of ", length, " bytes does not fit the file's ", file_bytes_);
    }
    std::string text(length, '\0');
    ReadBytes(text.data(), length);
    data_begin_ = sizeof length + length;
    data_bytes_ = file_bytes_ - data_begin_;
    Json header = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!header.is_object()) Corrupt("the header is not a JSON object");
    return header;
  }

  void ReadMetadata(const Json& entry, Metadata* metadata) const {
    if (!entry.is_object()) Corrupt("'", kMetadataKey, "' is not an object of texts");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) Corrupt("'", kMetadataKey, ".", key, "' is not a text");
      (*metadata)[key] = value.get<std::string>();
    }
  }

  const Json& Member(const std::string& tensor, const Json& entry, const char* key) const {
    if (!entry.is_object() || !entry.contains(key)) {
      Corrupt("tensor '", tensor, "' has no '", key, "'");
    }
    return entry[key];
  }

  std::vector<std::uint64_t> Sizes(const std::string& tensor, const Json& entry,
                                   const char* key) const {
    const Json& list = Member(tensor, entry, key);
    std::vector<std::uint64_t> sizes;
    bool right = list.is_array();
    for (const Json& item : right ? list : Json::array()) {
      right = right && item.is_number_unsigned();
      if (right) sizes.push_back(item.get<std::uint64_t>());
    }
    if (!right) Corrupt("tensor '", tensor, "': '", key, "' is not a list of sizes");
    return sizes;
  }

  at::ScalarType Type(const std::string& tensor, const Json& entry) const {
    const Json& name = Member(tensor, entry, "dtype");
    for (const Dtype& dtype : kDtypes) {
      if (name == dtype.name) return dtype.type;
    }
    Corrupt("tensor '", tensor, "' has the unknown dtype ", name.dump());
  }

  // The bytes that shape and dtype stand for; fails instead of overflowing.
  std::uint64_t BytesFor(const std::string& tensor, const std::vector<std::uint64_t>& shape,
                         at::ScalarType type) const {
    std::uint64_t bytes = at::elementSize(type);
    for (const std::uint64_t size : shape) {
      constexpr auto kLimit = std::uint64_t{std::numeric_limits<std::int64_t>::max()};
      if (size > kLimit || (size != 0 && bytes > kLimit / size)) {
        Corrupt("tensor '", tensor, "' has an impossible shape");
      }
      bytes *= size;
    }
    return bytes;
  }

  at::Tensor ReadTensor(const std::string& name, const Json& entry,
                        std::vector<std::pair<std::uint64_t, std::uint64_t>>* ranges) {
    const at::ScalarType type = Type(name, entry);
    const std::vector<std::uint64_t> shape = Sizes(name, entry, "shape");
    const std::vector<std::uint64_t> offsets = Sizes(name, entry, "data_offsets");
    if (offsets.size() != 2 || offsets[0] > offsets[1]) {
      Corrupt("tensor '", name, "' has no range of data");
    }
    if (offsets[1] > data_bytes_) {
      Corrupt("torn: tensor '", name, "' ends at byte ", offsets[1], " of the data, the file has ",
              data_bytes_);
    }
    const std::uint64_t bytes = BytesFor(name, shape, type);
    if (bytes != offsets[1] - offsets[0]) {
      Corrupt("tensor '", name, "' needs ", bytes, " bytes, its range has ",
              offsets[1] - offsets[0]);
    }
    ranges->emplace_back(offsets[0], offsets[1]);
    at::Tensor tensor =
        at::empty(std::vector<std::int64_t>(shape.begin(), shape.end()), at::dtype(type));
    stream_.seekg(static_cast<std::streamoff>(data_begin_ + offsets[0]));
    if (bytes > 0) ReadBytes(tensor.mutable_data_ptr(), bytes);
    return tensor;
  }

  void CheckCovered(std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges) const {
    std::sort(ranges.begin(), ranges.end());
    std::uint64_t covered = 0;
    for (const auto& [begin, end] : ranges) {
      if (begin != covered) Corrupt("tensors overlap or leave a hole at byte ", covered);
      covered = end;
    }
    if (covered != data_bytes_) {
      Corrupt("has ", data_bytes_, " bytes of data, its tensors cover ", covered);
    }
  }

  std::filesystem::path file_;
  std::ifstream stream_;
  std::uint64_t file_bytes_ = 0;
  std::uint64_t data_begin_ = 0;
  std::uint64_t data_bytes_ = 0;
};

}  // namespace

void WriteSafetensors(const std::filesystem::path& file, const NamedTensors& tensors,
                      const Metadata& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  const auto order = InFileOrder(tensors);
  std::uint64_t offset = 0;
  for (const auto& it : order) {
    const auto& [name, tensor] = *it;
    Require(name != kMetadataKey, "a tensor cannot be named '", kMetadataKey, "'");
    const std::uint64_t end =
        offset + static_cast<std::uint64_t>(tensor.numel()) * tensor.element_size();
    header[name] = {{"dtype", NameOf(tensor.scalar_type(), name)},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((kAlignment - text.size() % kAlignment) % kAlignment, ' ');
  const std::uint64_t length = text.size();

  FileWriter writer(file);
  writer.Write(std::as_bytes(std::span(&length, 1)));
  writer.Write(text);
  for (const auto& it : order) {
    const at::Tensor cpu = it->second.detach().to(at::kCPU).contiguous();
    writer.Write(BytesOf(cpu));
  }
  writer.Finish();
}

SafetensorsFile ReadSafetensors(const std::filesystem::path& file) { return Reader(file).Read(); }

}  // namespace megafold::train
