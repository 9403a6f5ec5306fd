-- Asks for a turn, reports on one, or sets a hold. One key per account: a hash with, for each route R,
--   due:R    when the next send is allowed      holder:R the replica whose turn it is
--   until:R  when its lease ends                queue:R  replicas that wait, in order, as "a,b,"
-- and hold for the account. Moments are microseconds of this server's clock alone; beside each stands
-- how far ahead it lay when it was written (due_span:R, until_span:R, hold_span). No moment is taken
-- to be further ahead than that, so that a clock set back cannot stop a line.
--
-- ARGV: op, route, me, span, lease, again, channel prefix, ttl        (us; ttl in ms)
--   ask   wants a turn, or to keep the one it has; span is the line's interval
--   done  has used its turn (span: until the next send may follow) or does not want it (span 0);
--         again = 1: wants another
--   hold  silence for span
-- Returns {is it mine, us until the line opens, how many want turns, how many go before me}.
local op, route, me = ARGV[1], ARGV[2], ARGV[3]
local span, lease, again = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local channel, ttl = ARGV[7], tonumber(ARGV[8])
local key = KEYS[1]

local kind = redis.call('TYPE', key)['ok']
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function whole(number) return string.format('%.0f', number) end

local function read(name)
  local values = redis.call('HMGET', key, name, name .. '_span')
  local at, most = tonumber(values[1] or '0'), tonumber(values[2] or '0')
  if at > now + most then at = now + most end
  return at
end

local function write(name, at)
  redis.call('HSET', key, name, whole(at), name .. '_span', whole(math.max(0, at - now)))
end

local function keep_until(at)
  redis.call('PEXPIRE', key, ttl + math.ceil(math.max(0, at - now) / 1000))
end

if op == 'hold' then
  local hold = math.max(read('hold'), now + span)
  write('hold', hold)
  keep_until(hold)
  redis.call('PUBLISH', channel .. 'holds', me .. ' ' .. key .. ' ' .. whole(hold - now))
  return {0, whole(hold - now), 0, 0}
end

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

local function grant(who)
  holder = who
  queue = without(who)
  write(UNTIL, opens() + lease)
end

if holder ~= '' and holder ~= me and read(UNTIL) < now then
  -- It died or was cut off, perhaps after its last moment's send.
  write(DUE, math.max(read(DUE), math.min(now, read(UNTIL)) + span))
  queue = without(holder)
  holder = ''
end

if op == 'done' then
  if span > 0 then write(DUE, math.max(read(DUE), now + span)) end
  if holder == me then holder = '' end
  queue = without(me)
  if again then queue = queue .. me .. ',' end
elseif holder == me then
  grant(me)
elseif without(me) == queue then
  queue = queue .. me .. ','
end

if holder == '' then
  local first = string.match(queue, '([^,]+),')
  if first then
    grant(first)
    if first ~= me then
      redis.call('PUBLISH', channel .. first, key .. ' ' .. route .. ' ' .. whole(opens() - now))
    end
  end
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
return {holder == me and 1 or 0, whole(opens() - now), wanting, ahead}
