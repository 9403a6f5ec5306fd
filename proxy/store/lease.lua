-- One operation on the state of one account: who has the lease of each route, and until when.
--
-- Theory of operation. Each route has a moment DUE from which the next send is allowed, at most one
-- HOLDER of its lease, and a QUEUE of the replicas that want it, first come first served. A replica
-- asks and gets the lease, or a place in the queue. After a send it reports for how long that send
-- keeps the next one back; the report moves DUE and passes the lease on. The lease is given ahead of
-- DUE, so the new holder knows its moment while it waits. It ends a while after DUE: if a
-- holder died or receives no message, the script passes it over, and allows for a last send of it. A
-- replica that sends alone may keep the lease between its sends, until another replica asks for it.
--
-- Invariants. Only the holder may send. DUE never moves back while it lies ahead. A replica is in the
-- queue at most once, and not while it is the holder; the queue has at most MOST names. No moment lies
-- further ahead than it did when it was written, at most a day: a clock that is set back cannot stop a
-- queue. Nothing that others wrote into the key stops a queue either.
--
-- State: one key, a hash. For each route R: due:R, until:R (when the lease ends), holder:R, queue:R
-- (replicas as "a,b,"), last:R (the replica that sent last). For the account, and with :R for one route:
-- hold, named (until when the API named it; hold ends sooner, to look). For the account: born (tells
-- this state from one that was lost before it), count (numbers the operations, so that messages and
-- answers can be put in order). Moments are microseconds of this server's clock; beside each stands how far
-- ahead it lay (due:R_span, ...).
--
-- ARGV: op, route, me, span, interval, lease, again, channel prefix, ttl, named   (us; ttl in ms)
--   ask    asks for the lease, or for more time with it
--   sent   reports a send; the next one may follow after span. again = wait: asks for the lease anew;
--          again = keep: keeps the lease if no other replica wants it and none sent since our last send
--   leave  gives up the lease, or the place in the queue
--   hold   puts the route, or without one the account, on hold for span; named: how long the API wants
--   open   ends the time that the API named; a hold that is not over stays
--   look   asks for holds, and changes nothing
-- Returns {1 if me has the lease, time until DUE, how many want it, how many of them go before me,
-- hold left, born, count, named left, hold of the route left, named of the route left}.
--
-- Published to one replica, on the channel of its name:
--   lease KEY ROUTE BORN COUNT WAIT    it has the lease; DUE comes after WAIT
--   over KEY ROUTE BORN COUNT          its lease ran out and was given to another
--   wanted KEY ROUTE BORN COUNT        another replica wants the lease it has
-- and to all, on the channel "all":
--   hold WHO KEY ROUTE SPAN NAMED      the route, or ("") the account, is on hold
--   open WHO KEY ROUTE                 it is on hold no longer
--   lost WHO KEY BORN                  WHO found no state; the others report their holds again
local op, route, me = ARGV[1], ARGV[2], ARGV[3]
local span, interval, lease = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local again, channel, ttl, named = ARGV[7], ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10] or '0')
local key = KEYS[1]
local LONGEST = 86400 * 1000000
local MOST, NAME = 128, 32 -- replicas in a queue; bytes of a name

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

-- One call reads the state and one writes it: a call costs as much as the rest of the script.
local HOLD, DUE, UNTIL = 'hold', 'due:' .. route, 'until:' .. route
local HOLDER, QUEUE, LAST = 'holder:' .. route, 'queue:' .. route, 'last:' .. route
local NAMED, ROUTE_HOLD, ROUTE_NAMED = 'named', 'hold:' .. route, 'named:' .. route
local moments = {HOLD, DUE, UNTIL, NAMED, ROUTE_HOLD, ROUTE_NAMED}
local function read()
  return redis.pcall('HMGET', key, 'count', 'born', HOLDER, QUEUE, LAST,
    HOLD, HOLD .. '_span', DUE, DUE .. '_span', UNTIL, UNTIL .. '_span', NAMED, NAMED .. '_span',
    ROUTE_HOLD, ROUTE_HOLD .. '_span', ROUTE_NAMED, ROUTE_NAMED .. '_span')
end
local stored = read()
if stored.err then -- of another type
  redis.call('DEL', key)
  stored = read()
end
local changed = {}

local function whole(number) return string.format('%.0f', number) end

local function set(name, text)
  changed[#changed + 1] = name
  changed[#changed + 1] = text
end

-- Returns the number from 0 to `most` that the text holds, else 0.
local function number(text, most)
  local value = tonumber(text or '') or 0
  if value >= 0 and value <= most then return value end
  return 0
end

local at = {}

local function move(name, to)
  local ahead = math.min(math.max(0, to - now), LONGEST)
  at[name] = math.min(to, now + ahead)
  set(name, whole(at[name]))
  set(name .. '_span', whole(ahead))
end

for index, name in ipairs(moments) do
  local most = number(stored[5 + 2 * index], LONGEST)
  at[name] = number(stored[4 + 2 * index], 2 ^ 53)
  if at[name] > now + most then move(name, now + most) end
end

local function tell(who, text) return redis.call('PUBLISH', channel .. who, text) end

local function left(moment) return whole(math.max(0, moment - now)) end

local function lost(born) tell('all', 'lost ' .. me .. ' ' .. key .. ' ' .. whole(born)) end

local function save(latest)
  redis.call('HSET', key, unpack(changed))
  local keep = ttl + math.ceil(math.max(0, latest - now) / 1000)
  if keep > redis.call('PTTL', key) then redis.call('PEXPIRE', key, keep) end -- another route may need the key for longer
end

local function answer(mine, wait, wanting, ahead, born, count)
  return {mine, wait, wanting, ahead, left(at[HOLD]), born, count, left(at[NAMED]),
    left(at[ROUTE_HOLD]), left(at[ROUTE_NAMED])}
end

local count = number(stored[1], 2 ^ 53)
if op == 'look' then
  if count == 0 then lost(0) end
  return answer(0, left(at[HOLD]), 0, 0, 0, 0)
end

count = whole(count + 1)
set('count', count)
local born = number(stored[2], 2 ^ 53)
if born == 0 then
  born = now
  set('born', whole(born))
  lost(born)
end
if op == 'hold' or op == 'open' then
  local hold, wait = HOLD, NAMED
  if route ~= '' then hold, wait = ROUTE_HOLD, ROUTE_NAMED end
  local about = op .. ' ' .. me .. ' ' .. key .. ' ' .. route
  if op == 'hold' then
    move(hold, math.max(at[hold], now + span))
    move(wait, math.max(at[wait], now + named))
    about = about .. ' ' .. left(at[hold]) .. ' ' .. left(at[wait])
  else
    move(wait, now) -- a hold that is not over stays
  end
  save(math.max(at[hold], at[wait]))
  tell('all', about)
  return answer(0, left(at[hold]), 0, 0, whole(born), count)
end

local about = key .. ' ' .. route .. ' ' .. whole(born) .. ' ' .. count
local holder = stored[3] or ''
if #holder > NAME then holder = '' end

local waiting, place = {}, {} -- names in order; and which of them are there
for name in string.gmatch(string.sub(stored[4] or '', 1, MOST * (NAME + 1)), '([^,]+),') do
  if #name <= NAME and not place[name] and #waiting < MOST then
    waiting[#waiting + 1] = name
    place[name] = true
  end
end

local function remove(who)
  if not place[who] then return end
  place[who] = nil
  for index, name in ipairs(waiting) do
    if name == who then table.remove(waiting, index) end
  end
end

local function append(who)
  if place[who] or #waiting >= MOST then return end
  waiting[#waiting + 1] = who
  place[who] = true
end

local function opens() return math.max(now, at[DUE], at[HOLD], at[ROUTE_HOLD]) end

-- Gives the lease, anew or for longer; false if that replica no longer listens.
local function grant(who)
  holder = who
  remove(who)
  move(UNTIL, opens() + lease)
  return who == me or tell(who, 'lease ' .. about .. ' ' .. whole(opens() - now)) > 0
end

if holder ~= '' and holder ~= me and at[UNTIL] < now then
  -- The holder died or was cut off, perhaps after a send in its last moment.
  move(DUE, math.max(at[DUE], at[UNTIL] + interval))
  tell(holder, 'over ' .. about)
  holder = ''
end

if op == 'ask' then
  if holder == me then
    grant(me)
  else
    append(me)
    if holder ~= '' then tell(holder, 'wanted ' .. about) end
  end
else
  if holder == me then holder = '' end
  remove(me)
  if op == 'sent' then
    move(DUE, math.max(at[DUE], now + span))
    if holder ~= '' then grant(holder) end -- a send without the lease moved DUE: tell the holder
    local alone = stored[5] == me and holder == '' and #waiting == 0
    if again == 'wait' or (again == 'keep' and alone) then append(me) end
    set(LAST, me)
  end
end

while holder == '' and waiting[1] do
  if not grant(waiting[1]) then holder = '' end
end

set(HOLDER, holder)
set(QUEUE, table.concat(waiting, ',') .. (waiting[1] and ',' or ''))
save(math.max(opens(), at[UNTIL]))

local wanting, ahead, found = #waiting, 0, holder == me
if holder ~= '' then
  wanting = wanting + 1
  if not found then ahead = 1 end
end
for _, name in ipairs(waiting) do
  if name == me then found = true end
  if not found then ahead = ahead + 1 end
end
return answer(holder == me and 1 or 0, whole(opens() - now), wanting, ahead, whole(born), count)
