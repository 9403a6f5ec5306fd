-- One operation on one account's state. One key per account: a hash with, for each route R,
--   due:R    when the next send is allowed      holder:R the replica whose turn it is
--   until:R  when its lease ends                queue:R  replicas that wait, in order, as "a,b,"
-- and, for the account, hold, born (which tells the state from one that was lost before it) and count
-- (of the operations on it, so that word and answer can be put in order). Moments are microseconds of
-- this server's clock alone. Beside each stands how far ahead it lay when it was written (due:R_span,
-- ...), a day at the most: no moment is taken to be further ahead than that, so that a clock set back
-- cannot stop a line.
--
-- ARGV: op, route, me, span, interval, lease, again, channel prefix, ttl       (us; ttl in ms)
--   ask    wants a turn, or to keep the one it has
--   sent   has sent; the next send may follow after span; again = 1: wants another turn
--   leave  wants no turn
--   hold   silence for span
--   look   wants to know of a hold
-- Returns {is it mine, until the line opens, how many want turns, how many go before me, hold left,
-- born, count}.
--
-- Told to one replica, on the channel of its name:
--   turn KEY ROUTE BORN COUNT WAIT   it has the turn; the line opens in WAIT
--   over KEY ROUTE BORN COUNT        its turn ran out and was given to another
-- and to all, on the channel "all":
--   hold WHO KEY SPAN                silence
--   lost WHO KEY BORN                WHO found no state; who knows better should say so
local op, route, me = ARGV[1], ARGV[2], ARGV[3]
local span, interval, lease = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local again, channel, ttl = ARGV[7] == '1', ARGV[8], tonumber(ARGV[9])
local key = KEYS[1]
local LONGEST = 86400 * 1000000

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local kind = redis.call('TYPE', key)['ok']
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end

local function whole(number) return string.format('%.0f', number) end

-- What somebody else wrote here must not stop a line.
local function number(text, most)
  local value = tonumber(text or '') or 0
  if value >= 0 and value <= most then return value end
  return 0
end

local function write(name, at)
  local ahead = math.min(math.max(0, at - now), LONGEST)
  redis.call('HSET', key, name, whole(math.min(at, now + ahead)), name .. '_span', whole(ahead))
end

local function read(name)
  local values = redis.call('HMGET', key, name, name .. '_span')
  local at, most = number(values[1], 2 ^ 53), number(values[2], LONGEST)
  if at > now + most then
    at = now + most
    write(name, at)
  end
  return at
end

local function keep_until(at)
  local left = ttl + math.ceil(math.max(0, at - now) / 1000)
  if left > redis.call('PTTL', key) then redis.call('PEXPIRE', key, left) end -- another route's may be later
end

local function tell(who, text) return redis.call('PUBLISH', channel .. who, text) end

local function hold_left() return whole(math.max(0, read('hold') - now)) end

local function lost(born) tell('all', 'lost ' .. me .. ' ' .. key .. ' ' .. whole(born)) end

if op == 'look' then
  if redis.call('EXISTS', key) == 0 then lost(0) end
  return {0, hold_left(), 0, 0, hold_left(), 0, 0}
end

local count = whole(number(redis.call('HGET', key, 'count'), 2 ^ 53) + 1)
redis.call('HSET', key, 'count', count)
local born = number(redis.call('HGET', key, 'born'), 2 ^ 53)
if born == 0 then
  born = now
  redis.call('HSET', key, 'born', whole(born))
  lost(born)
end
if op == 'hold' then
  local hold = math.max(read('hold'), now + span)
  write('hold', hold)
  keep_until(hold)
  tell('all', 'hold ' .. me .. ' ' .. key .. ' ' .. whole(hold - now))
  return {0, hold_left(), 0, 0, hold_left(), whole(born), count}
end

local about = key .. ' ' .. route .. ' ' .. whole(born) .. ' ' .. count

local DUE, UNTIL = 'due:' .. route, 'until:' .. route
local holder = redis.call('HGET', key, 'holder:' .. route) or ''
local queue = redis.call('HGET', key, 'queue:' .. route) or ''

local function opens() return math.max(now, read(DUE), read('hold')) end

local function without(who)
  local kept = ''
  for other in string.gmatch(queue, '([^,]+),') do
    if other ~= who then kept = kept .. other .. ',' end
  end
  return kept
end

queue = without('') -- as we write it, whoever wrote it

-- Gives the turn, anew or for longer; false if nobody listens there any more.
local function grant(who)
  holder = who
  queue = without(who)
  write(UNTIL, opens() + lease)
  return who == me or tell(who, 'turn ' .. about .. ' ' .. whole(opens() - now)) > 0
end

if holder ~= '' and holder ~= me and read(UNTIL) < now then
  -- It died or was cut off, perhaps after a send in its last moment.
  write(DUE, math.max(read(DUE), read(UNTIL) + interval))
  tell(holder, 'over ' .. about)
  holder = ''
end

if op == 'ask' then
  if holder == me then
    grant(me)
  elseif without(me) == queue then
    queue = queue .. me .. ','
  end
else
  if holder == me then holder = '' end
  queue = without(me)
  if again then queue = queue .. me .. ',' end
  if op == 'sent' then
    write(DUE, math.max(read(DUE), now + span))
    if holder ~= '' then grant(holder) end -- a send out of turn: the holder's moment has moved
  end
end

while holder == '' do
  local first = string.match(queue, '([^,]+),')
  if not first then break end
  if not grant(first) then holder = '' end
end

redis.call('HSET', key, 'holder:' .. route, holder, 'queue:' .. route, queue)
keep_until(math.max(opens(), read(UNTIL)))

local wanting, ahead, found = 0, 0, holder == me
if holder ~= '' then
  wanting = 1
  if not found then ahead = 1 end
end
for other in string.gmatch(queue, '([^,]+),') do
  wanting = wanting + 1
  if other == me then found = true end
  if not found then ahead = ahead + 1 end
end
return {holder == me and 1 or 0, whole(opens() - now), wanting, ahead, hold_left(), whole(born), count}
