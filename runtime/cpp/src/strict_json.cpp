#include "strict_json.hpp"

#include <cmt/error.hpp>
#include <set>
#include <vector>

namespace cmt {

using Json = nlohmann::json;

void damaged(const std::string& problem) {
  throw InputError(std::string(kManifest) + " is damaged (" + problem + "): copy the bundle again");
}

Json parse_strictly(std::string_view text) {
  constexpr int kMaxDepth = 64;
  if (text.substr(0, 3) == "\xEF\xBB\xBF") damaged("it begins with a byte order mark");
  // nlohmann's parser takes one for the end of the text, whatever follows.
  if (text.find('\0') != std::string_view::npos) damaged("it holds a NUL character");
  std::vector<std::set<std::string>> names;
  const auto check = [&](int depth, Json::parse_event_t event, const Json& value) {
    using Event = Json::parse_event_t;
    if ((event == Event::object_start || event == Event::array_start) && depth >= kMaxDepth) {
      damaged("it is nested too deeply");
    }
    if (event == Event::object_start) names.emplace_back();
    if (event == Event::object_end) names.pop_back();
    if (event == Event::key && !names.back().insert(value.get<std::string>()).second) {
      damaged("it has the name '" + value.get<std::string>().substr(0, 40) +
              "' twice in one object");
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::exception& error) {
    damaged(std::string(error.what()).substr(0, 200));
  }
}

}  // namespace cmt
