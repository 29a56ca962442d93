local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Returns why the holder may not use the bucket, or nil. The store must have the heartbeat that the
-- holder knows of, or a later one: a store that was restored from a file, or that was emptied, has
-- lost it, and with it perhaps removals.
local function refused(beats, holder, deadline, revision)
  local own = tonumber(redis.call('HGET', beats, holder) or '0')
  if own < tonumber(deadline) then return { 'lost' } end
  if own <= now then return { 'late' } end
  local current = redis.call('HGET', beats, 'r') or '0'
  if current ~= revision then return { 'revised', current } end
end

-- An entry is 1 (its kind), flags, version, cipher suite (2), fit (8), the number of holds, the
-- holds (a holder of 8 bytes and a token of 4), and the sealed value. A note is 2, a reason, and the
-- time of the removal.
local ENTRY, NOTE = 1, 2
-- The reason of a ticket that is spent.
local SPENT = 6

-- The sessions of tickets that are not good any more: a sorted set by 8 times the time of the ticket's end, plus
-- the reason. It has no expiry, so no store evicts it alone under a policy for keys with one. It has a member
-- of no session, so that it is there as long as the bucket says.

-- Returns whether the store has lost the list. All heartbeats are gone then, so no ticket from before is good.
local function lost_list(list, beats)
  local is_lost = redis.call('HGET', beats, 'g') and not redis.call('ZSCORE', list, '')
  if is_lost then redis.call('DEL', beats) end
  return is_lost
end

-- Returns the reason for which a session is on the list, or nil.
local function listed(list, name)
  local score = tonumber(redis.call('ZSCORE', list, name) or '0')
  if score > now * 8 then return score % 8 end
end

-- Returns the member of a holder that has ended with everything delivered to a process of the store. It is in the
-- list, so that it is lost with it.
local function mark(holder, server)
  return 'm:' .. holder .. server
end

-- Puts a session or a mark on the list for so many milliseconds, or longer if it is there for longer. Returns whether it
-- was not there.
local function put_on_list(list, beats, name, reason, life)
  lost_list(list, beats)
  redis.call('HSET', beats, 'g', '1')
  redis.call('ZREMRANGEBYSCORE', list, '-inf', string.format('%.0f', now * 8))
  local before = tonumber(redis.call('ZSCORE', list, name) or '0')
  local score = (now + tonumber(life)) * 8
  if before == 0 then score = score + reason else score = score + before % 8 end
  if score > before then
    redis.call('ZADD', list, 'inf', '', string.format('%.0f', score), name)
  end
  return before == 0
end
local HEAD, HOLD = 13, 12

-- Returns the value of an entry, or nil if there is none, or one of another type.
local function read(entry)
  local value = redis.pcall('GET', entry)
  if type(value) == 'string' then return value end
end

-- Returns the place of the first byte of a hold, or nil.
local function find_hold(value, hold)
  for i = 0, (value:byte(HEAD + 1) or 0) - 1 do
    local at = HEAD + 2 + HOLD * i
    if value:sub(at, at + HOLD - 1) == hold then return at end
  end
end
