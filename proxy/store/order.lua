-- The orders of operators for accounts, in one hash, so that one call reads them all.
--
-- A field is KIND ACCOUNT; its value is SINCE UNTIL VALUE, in ms of wall time, ms of this server's
-- clock (0: no end) and us; of a pause VALUE is 0, or 1 if it was ended. The field `born` tells this
-- state from one that was lost before it. The key ends with the last order.
--
-- ARGV: channel, who, op, field, since, left (ms; -1: no end), value, longest (ms)
--   read   changes nothing
--   keep   keeps the order in the place of any other of that field
--   again  keeps it only if there is none: a replica repeats it to a store that lost its data
--   end    records for an hour that it has ended, so that `again` does not bring it back
-- Returns {born ('' if there is no key), then field, since, left, value of each order}, and publishes
-- WHO after a change.
local key, channel, who, op, field = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local since, left, value, longest = ARGV[5], tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
if redis.call('TYPE', key).ok ~= 'hash' then redis.call('DEL', key) end

local ENDED = 3600000 -- ms for which the end is recorded, for replicas that were cut off meanwhile

local function whole(number) return string.format('%.0f', number) end

if op ~= 'read' then redis.call('HSETNX', key, 'born', whole(now) .. '-' .. who) end
if op == 'end' then
  redis.call('HSET', key, field, '0 ' .. whole(now + ENDED) .. ' 1')
elseif op == 'keep' or op == 'again' then
  local ends = 0
  if left >= 0 then ends = now + left end
  local call = op == 'keep' and 'HSET' or 'HSETNX'
  redis.call(call, key, field, since .. ' ' .. whole(ends) .. ' ' .. value)
end
if op ~= 'read' then redis.call('PUBLISH', channel, who) end

local answer = {redis.call('HGET', key, 'born') or ''}
local keep = 1 -- ms for which the key is needed; -1: without an end
local all = redis.call('HGETALL', key)
for index = 1, #all, 2 do
  local begun, ends, worth = string.match(all[index + 1], '^(%d+) (%d+) (%d+)$')
  if begun then
    ends = tonumber(ends)
    if ends == 0 then keep = -1 elseif keep > 0 then keep = math.max(keep, ends - now) end
    if ends ~= 0 and (ends <= now or ends > now + longest) then
      redis.call('HDEL', key, all[index]) -- over, or the server's clock was set back
    else
      answer[#answer + 1] = all[index]
      answer[#answer + 1] = begun
      answer[#answer + 1] = whole(ends == 0 and -1 or ends - now)
      answer[#answer + 1] = worth
    end
  end
end
if op ~= 'read' then
  if keep > 0 then redis.call('PEXPIRE', key, whole(keep)) else redis.call('PERSIST', key) end
end
return answer
