-- The list of an experiment that is being recomputed is closed once all users were computed or listed: commits no longer add to it.
-- They follow the facts of users that are not on it, and leave those that are on it to the recomputation. So it ends, however
-- much is stored meanwhile, and its last step computes nobody.
ALTER TABLE experiments_behind ADD COLUMN is_list_closed boolean NOT NULL DEFAULT false;
