local list, beats = KEYS[1], KEYS[2]
local holder, deadline, revision, name, sealer, server, spends, life, valid_until = unpack(ARGV)

local why = refused(beats, holder, deadline, revision)
if why then return why end
if now > tonumber(valid_until) then return { 'overdue' } end
if lost_list(list, beats) then return { 'lost' } end
local reason = listed(list, name)
if reason then return { 'gone', reason, 0 } end
-- The daemon that sealed the ticket lives, or has ended with everything delivered to this process of the store.
-- Otherwise the store may lack what that daemon knew of the ticket's connection.
local lives = tonumber(redis.call('HGET', beats, sealer) or '0') > now
if not lives and not listed(list, mark(sealer, server)) then return { 'holder' } end
if spends == '1' then put_on_list(list, beats, name, SPENT, life) end
return { 'good' }
