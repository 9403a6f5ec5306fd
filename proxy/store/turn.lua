-- One operation on the state of one account: who has the lease of each route, and until when.
--
-- Theory of operation. Each route has a moment DUE from which the next send is allowed, at most one
-- HOLDER of its lease, and a QUEUE of the replicas that want it, first come first served. A replica
-- asks and gets the lease, or a place in the queue. After a send it reports for how long that send
-- keeps the next one back; the report moves DUE and passes the lease on. The lease is given ahead of
-- DUE, so the new holder knows its moment while it waits. It ends a while after DUE: a holder that
-- died, or that nobody can hear, is passed over, and its possible last send is allowed for.
--
-- Invariants. Only the holder may send. DUE never moves back while it lies ahead. A replica is in the
-- queue at most once, and not while it is the holder. No moment lies further ahead than it did when
-- it was written, at most a day: a clock that is set back cannot stop a queue. Nothing that others
-- wrote into the key stops a queue either.
--
-- State: one key, a hash. For each route R: due:R, holder:R, until:R (when the lease ends), queue:R
-- (replicas as "a,b,"). For the account: hold, born (tells this state from one that was lost before
-- it), count (numbers the operations, so that messages and answers can be put in order). Moments are
-- microseconds of this server's clock; beside each stands how far ahead it lay (due:R_span, ...).
--
-- ARGV: op, route, me, span, interval, lease, again, channel prefix, ttl       (us; ttl in ms)
--   ask    wants the lease, or to keep the one it has
--   sent   has sent; the next send may follow after span; again = 1: wants another lease
--   leave  wants no lease
--   hold   the account is on hold for span
--   look   wants to know of a hold
-- Returns {has me the lease, until DUE, how many want it, how many go before me, hold left, born,
-- count}.
--
-- Published to one replica, on the channel of its name:
--   turn KEY ROUTE BORN COUNT WAIT   it has the lease; DUE comes after WAIT
--   over KEY ROUTE BORN COUNT        its lease ran out and was given to another
-- and to all, on the channel "all":
--   hold WHO KEY SPAN                the account is on hold
--   lost WHO KEY BORN                WHO found no state; the others report again what they know
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

-- Returns 0 for what is no moment of ours.
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

-- Gives the lease, anew or for longer; false if that replica no longer listens.
local function grant(who)
  holder = who
  queue = without(who)
  write(UNTIL, opens() + lease)
  return who == me or tell(who, 'turn ' .. about .. ' ' .. whole(opens() - now)) > 0
end

if holder ~= '' and holder ~= me and read(UNTIL) < now then
  -- The holder died or was cut off, perhaps after a send in its last moment.
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
