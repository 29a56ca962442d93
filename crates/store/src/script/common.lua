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
