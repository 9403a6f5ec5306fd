-- The load of wrk: one request after the other, each of the next of several callers.
-- Arguments: the path, how many callers, the number of the first; then, if it is to be posted, a body,
-- and how many of the callers are skipped in the first turn.

local requests = {}
local turn = 0

function init(arguments)
  local path, callers, first, body = arguments[1], arguments[2], arguments[3], arguments[4]
  local headers = {
    ["Accept"] = "application/json",
    ["Accept-Encoding"] = "gzip, deflate",
    ["User-Agent"] = "PureCloud SDK/python",
    ["Content-Type"] = "application/json",
  }
  for caller = first, first + callers - 1 do
    headers["Authorization"] = "Bearer caller-" .. caller
    table.insert(requests, wrk.format(body and "POST" or "GET", path, headers, body))
  end
  turn = arguments[5] or 0
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end
